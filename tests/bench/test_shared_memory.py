"""The kernel that measures shared memory: what it is compiled to for sm_90, and how its time becomes a rate."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.parts import Where, constants

pytest.importorskip("triton")
from bench.parts import shared_memory

# A process of its own: this one interprets Triton.
_COMPILE = """
import subprocess
import tempfile

from bench.parts.shared_memory import WARPS, banks
from fusedrnn.kernels.gpu.compiled import _TOOLS, compile_kernel

made = compile_kernel(banks, {"into": "*i32:16", "steps": "i32", "limit": "i32"}, {"ASM": True, "PREC": "tf32"}, 90, warps=WARPS, stages=1)
with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
    file.write(made.binary.asm["cubin"])
    file.flush()
    print(subprocess.run([_TOOLS / "nvdisasm", file.name], capture_output=True, text=True, check=True).stdout)
"""


def loops(text):
    """The instructions between a label and a branch back to it."""
    found, labels = [], {}
    lines = text.splitlines()
    for place, line in enumerate(lines):
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = place
        if (back := re.search(r"BRA `\((\.L_x_\d+)\)", line)) and back[1] in labels:
            found.append(
                [name[1] for one in lines[labels[back[1]] : place + 1] if (name := re.search(r"\*/\s+(?:@!?\w+ )?([A-Z0-9_.]+)", one))]
            )
    return [loop for loop in found if len(loop) > 2]  # the last one, behind the end, is of itself


def test_the_loop_reads_shared_memory_and_nothing_else():
    environment = {name: value for name, value in os.environ.items() if name not in ("FUSEDRNN_EMULATE", "TRITON_INTERPRET")}
    command = [sys.executable, "-W", "error::SyntaxWarning", "-c", _COMPILE]
    text = subprocess.run(command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, check=True).stdout
    (loop,) = loops(text)
    memory = [name for name in loop if re.match(r"(LD|ST|ATOM|RED|BAR)", name)]
    assert set(memory) == {"LDS.128"}
    assert len(memory) >= 4
    assert len(memory) % 4 == 0
    others = len(loop) - len(memory)
    assert others * 0.5 < len(memory) * 4 / 2  # four schedulers issue them in less than half of the cycles that the banks need


def test_what_threads_must_find():
    found = shared_memory.sums(3)
    assert found[0] == 16 * (0 + 32 + 64)
    assert found[511] == 16 * (511 + 31 + 63)


@pytest.fixture
def device(monkeypatch):
    """A device of 10 multiprocessors at 1000 MHz whose launches take a time that a test gives, and read right or wrong."""

    def put(us_of_a_turn, wrong=0, megahertz=1000.0):
        def launch(kernel, grid, tensors, numbers, precision, options, outputs):
            tensors["into"].view(-1, 512)[:] = shared_memory.sums(numbers["steps"])
            tensors["into"][0] += wrong

        def in_turn(works, where, rounds):
            for work in works.values():
                work()
            return {"once": [10.0 + 128 * us_of_a_turn], "twice": [10.0 + 256 * us_of_a_turn]}

        monkeypatch.setattr(shared_memory, "launch", launch)
        monkeypatch.setattr(shared_memory, "in_turn", in_turn)
        monkeypatch.setattr(constants, "_multiprocessors", lambda where: 10)
        monkeypatch.setattr(constants, "_highest_clock", lambda: megahertz)
        return constants.measure({"what": "shared", "steps": 128}, Where(False), 10.0)[0]

    return put


def test_the_rate_of_all_multiprocessors(device):
    perfect = 32768 / 128 / 1000  # us of a turn, by the clock
    found = device(2 * perfect)
    assert found["faults"] == []
    assert found["bytes_per_us"] == pytest.approx(128 * 1000 * 10 / 2, rel=1e-3)
    assert found["of_clock"] == pytest.approx(0.5, abs=1e-3)
    assert "of_clock" not in device(perfect, megahertz=None)


def test_a_rate_above_the_clock_and_a_wrong_sum_are_faults(device):
    perfect = 32768 / 128 / 1000
    assert device(perfect / 2)["faults"] == ["2.00 times what 128 bytes a cycle are at 1000 MHz"]
    assert device(perfect, wrong=1)["faults"] == ["a thread has not read what others wrote"]
    assert device(0.0)["bytes_per_us"] is None
