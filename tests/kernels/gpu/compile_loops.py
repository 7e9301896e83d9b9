"""Run by test_compiled.py in a process that does not interpret: small loops and their statistics, as JSON lines."""

import dataclasses
import json
import warnings

import triton
import triton.language as tl

from fusedrnn.kernels.gpu import activations
from fusedrnn.kernels.gpu.barrier import arrive, wait
from fusedrnn.kernels.gpu.compiled import compile_kernel, statistics
from fusedrnn.kernels.gpu.products import multiply, resident


@triton.jit
def loop(w, h, counter, error, T, limit, H: tl.constexpr, M: tl.constexpr, BB: tl.constexpr, KC: tl.constexpr, WHERE: tl.constexpr):
    column = tl.program_id(0)
    m, k, rows = tl.arange(0, M), tl.arange(0, KC), tl.arange(0, BB)
    w += column * M * H
    if WHERE == "resident":
        ws = resident(w, 0, m, k, H, KC, tl.bfloat16, False, "tf32", True)
    t = 0
    late = 0
    while (t < T) & (late == 0):
        z = tl.zeros((M, BB), tl.float32)
        if WHERE == "resident":
            z = multiply(ws, h + t * BB * H, rows, k, z, H, H, KC, 2, tl.bfloat16, False, "tf32", True)
        else:
            for i in tl.range(0, H // KC, num_stages=3):
                hv = tl.load(h + t * BB * H + rows[None, :] * H + i * KC + k[:, None], cache_modifier=".cg")
                z = tl.dot(tl.load(w + m[:, None] * H + i * KC + k[None, :]), hv, acc=z)
        z = activations.tanh(z) * activations.sigmoid(z)
        tl.store(h + (t + 1) * BB * H + rows[None, :] * H + (column * M + m)[:, None], z.to(h.dtype.element_ty))
        arrive(counter, True)
        late = wait(counter, (t + 1) * tl.num_programs(0), limit, True)
        t += 1
    if late > 0:
        tl.store(error, 1)


@triton.jit
def activate(x, y):
    at = tl.arange(0, 128)
    value = tl.load(x + at)
    bounded = activations.sigmoid(value) + activations.tanh(value) + activations.erf(value)
    tl.store(y + at, bounded + activations.expm1(value) + activations.log1p(value) + activations.softplus(value))


def main():
    warnings.simplefilter("error")
    types = {"w": "*bf16:16", "h": "*bf16:16", "counter": "*i32:16", "error": "*i32", "T": "i32", "limit": "i32"}
    for arch in (80, 90, 100):
        for where in ("resident", "streamed"):
            constants = {"H": 256, "M": 64, "BB": 16, "KC": 64, "WHERE": where}
            compiled = compile_kernel(loop, types, constants, arch, warps=4, stages=1, maxnreg=250)
            print(json.dumps({"arch": arch, "where": where, **dataclasses.asdict(statistics(compiled, ["w"]))}), flush=True)
    crowded = compile_kernel(loop, types, constants | {"WHERE": "resident"}, 80, warps=4, stages=1, maxnreg=32)
    print(json.dumps({"arch": 80, "where": "crowded", **dataclasses.asdict(statistics(crowded, ["w"]))}))
    for arch in (80, 90, 100):
        compile_kernel(activate, {"x": "*fp32", "y": "*fp32"}, {}, arch, warps=4, stages=1)
    for call, error in (
        (lambda: compile_kernel(loop, types, {"H": 256}, 90, warps=4, stages=1), TypeError),
        (lambda: statistics(crowded, ["weights"]), ValueError),
    ):
        try:
            call()
        except error as told:
            print(json.dumps({"error": str(told)}))


if __name__ == "__main__":
    main()
