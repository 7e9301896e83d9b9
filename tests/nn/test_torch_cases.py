"""torch.nn's own cases, in a process of their own: torch's testing package changes hypothesis' profile and the flags of backends."""

import subprocess
import sys
from pathlib import Path


def test_torchs_own_cases_pass():
    file = Path(__file__).with_name("torch_cases.py")
    done = subprocess.run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
