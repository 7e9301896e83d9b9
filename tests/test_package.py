"""What importing the package brings, and what it puts off."""

from __future__ import annotations

import subprocess
import sys

import pytest

import fusedrnn

FEW_WORDS = """
import sys
import torch
before = set(sys.modules)
from fusedrnn.cli import main
assert main(["g2p", "hello"]) == 0
new = set(sys.modules) - before
print(sorted(name for name in new if name.split(".")[0] in ("sympy", "mpmath", "triton") or name.startswith(("torch.fx", "torch._dynamo"))))
"""


def test_a_loop_on_reference_imports_nothing_that_captures():
    done = subprocess.run([sys.executable, "-c", FEW_WORDS], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["hello\tHH EH1 L OW0", "[]"]


def test_all_names_are_there():
    assert set(fusedrnn.__all__) <= set(dir(fusedrnn))
    for name in fusedrnn.__all__:
        assert getattr(fusedrnn, name) is not None


def test_other_names_are_not():
    with pytest.raises(AttributeError, match="module 'fusedrnn' has no attribute 'nonsense'"):
        _ = fusedrnn.nonsense
