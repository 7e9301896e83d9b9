"""A plan's kernel is compiled as it would be launched, and the executor's choice looks at what that gives."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

CODE = """
import torch
from fusedrnn import branches, contract, frames
from fusedrnn.capture import cache
from fusedrnn.cells.protocol import as_cell
from fusedrnn.contract import Call
from fusedrnn.kernels.gpu import limits
from fusedrnn.plan.choice import chosen
from fusedrnn.plan.measured import measured
from fusedrnn.plan.planner import planned

x, lengths, zeros = torch.randn(3, 2, 64).bfloat16(), torch.tensor([3, 1]), torch.zeros(2, 64).bfloat16()
loop_fn = lambda time, out, h, _: (time >= lengths, x[time], zeros if out is None else h, out, None)
call = Call(as_cell(torch.nn.GRUCell(64, 64).bfloat16()), loop_fn)
with torch.no_grad(), frames.running() as frame, branches.taken():
    program, _ = cache.captured(call, frame, contract.start(call, frame))
device = limits.of_arch(90)
choice = chosen(planned(program, 2, device, "hilo"), lambda plan: measured(plan, 2, 90), device.shared_bytes)
numbers = choice.measured.statistics
assert numbers.spill_bytes == 0 and numbers.wgmma > 0 and numbers.in_loop_weight_loads == 0, numbers
assert choice.measured.function.__name__ == "loop"
tiny = limits.Limits("tiny", 90, 132, 1 << 10, 65536, 255, 1024, 1 << 20, 1e12)
try:
    chosen(planned(program, 2, device, "hilo"), lambda plan: measured(plan, 2, 90), tiny.shared_bytes, most=1)
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.slow
def test_a_compiled_plan():
    environment = {name: value for name, value in os.environ.items() if name not in ("FUSEDRNN_EMULATE", "TRITON_INTERPRET")}
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", CODE], cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Unlowered no layout's kernel fits")
