"""The rate of shared memory, measured: every warp of every multiprocessor reads 16 bytes a lane, again and again, without bank conflicts.

Triton's own operations promise no such loop: what does not change may be read once, the operands of `tl.dot` go to the tensor core, and a
layout conversion also writes and waits. So the tile, what is written to it and the loop are PTX, as barriers are. Each turn reads what
another warp wrote, so that nothing can stay in registers; the sum of all that was read is checked. Compiled for sm_90 the loop has four
LDS.128 a turn and no other access to memory (tests/bench/test_shared_memory.py). Should a multiprocessor get two programs and another
none, the rate comes out too low, never too high. No GPU has run it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fusedrnn.kernels.gpu.launch import Options, launch

from . import Row, Where
from .timing import in_turn, marginal

THREADS, WARPS = 512, 16
BYTES = 4 * 16 * THREADS  # read by a program each turn, and as large is its tile
_AT_ONCE = 64  # turns that a time is told of: one takes a fraction of a microsecond


@triton.jit
def banks(into, steps, limit, ASM: tl.constexpr, PREC: tl.constexpr):  # noqa: N803
    """``into`` ``[programs * 512]``: each thread's sum of what it reads in ``steps`` turns. A thread's number is what it writes."""
    lanes = tl.arange(0, 512)
    found = tl.inline_asm_elementwise(
        """{
        .shared .align 16 .b8 tile[32768];
        .reg .b32 base, at, place, turn, a<4>, b<4>, c<4>, d<4>;
        .reg .pred more;
        mov.u32 base, tile;
        shl.b32 place, $1, 4;
        add.u32 at, base, place;
        st.shared.v4.b32 [at], {$1, $1, $1, $1};
        st.shared.v4.b32 [at+8192], {$1, $1, $1, $1};
        st.shared.v4.b32 [at+16384], {$1, $1, $1, $1};
        st.shared.v4.b32 [at+24576], {$1, $1, $1, $1};
        bar.sync 0;
        mov.u32 $0, 0;
        mov.u32 turn, $2;
        AGAIN:
        ld.shared.v4.b32 {a0, a1, a2, a3}, [at];
        ld.shared.v4.b32 {b0, b1, b2, b3}, [at+8192];
        ld.shared.v4.b32 {c0, c1, c2, c3}, [at+16384];
        ld.shared.v4.b32 {d0, d1, d2, d3}, [at+24576];
        add.u32 place, place, 512;
        and.b32 place, place, 8191;
        add.u32 at, base, place;
        add.u32 a0, a0, a1;
        add.u32 a2, a2, a3;
        add.u32 b0, b0, b1;
        add.u32 b2, b2, b3;
        add.u32 c0, c0, c1;
        add.u32 c2, c2, c3;
        add.u32 d0, d0, d1;
        add.u32 d2, d2, d3;
        add.u32 a0, a0, a2;
        add.u32 b0, b0, b2;
        add.u32 c0, c0, c2;
        add.u32 d0, d0, d2;
        add.u32 a0, a0, b0;
        add.u32 c0, c0, d0;
        add.u32 a0, a0, c0;
        add.u32 $0, $0, a0;
        sub.u32 turn, turn, 1;
        setp.gt.s32 more, turn, 0;
        @more bra AGAIN;
        }""",
        "=&r,r,r",
        [lanes, tl.zeros([512], tl.int32) + steps],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
    tl.store(into + tl.program_id(0) * 512 + lanes, found)


def sums(steps: int) -> torch.Tensor:
    """What each thread must have found ``[512]``: in every turn sixteen times the number of the thread whose part it reads."""
    turns = torch.arange(steps, dtype=torch.int64)[:, None]
    return (16 * ((torch.arange(THREADS) + 32 * turns) % THREADS).sum(0)).to(torch.int32)


def measure(steps: int, multiprocessors: int, where: Where) -> Row:
    """Bytes that all multiprocessors read in a microsecond, one program on each."""
    into = torch.zeros(multiprocessors * THREADS, dtype=torch.int32)

    def read(count: int) -> None:
        launch(banks, (multiprocessors, 1), {"into": into}, {"steps": count}, "tf32", Options(WARPS), outputs=["into"])

    times = in_turn({"once": lambda: read(steps), "twice": lambda: read(2 * steps)}, where, 11)
    us = marginal(times["once"], times["twice"], steps // _AT_ONCE)
    right = bool((into.view(-1, THREADS) == sums(2 * steps)).all())
    rate = round(BYTES * _AT_ONCE * multiprocessors / us) if us > 0 else None
    return {"bytes_per_us": rate, "faults": [] if right else ["a thread has not read what others wrote"]}
