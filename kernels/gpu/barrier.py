"""The barrier of a group. In: its counter, an int32 on a cache line of its own, zero at launch; out: all have arrived, or a time-out.

A counter only grows: after the n-th barrier it stands at n times the programs of the group. What a program wrote before `arrive` is
seen by every program of the group after `wait` (release and acquire at device scope), provided it reads past L1 (``.cg``).
"""

import triton
import triton.language as tl

POISON = tl.constexpr(1 << 30)  # a counter at or above it: some program of the group has timed out


@triton.jit
def arrive(counter, ASM: tl.constexpr):
    """Count this program in.

    The CTA barrier comes first: Triton puts none before a release atomic, and thread 0 would publish while stores of others wait.
    ``ASM`` is False under the interpreter, which has no PTX.
    """
    tl.debug_barrier()
    if ASM:
        tl.inline_asm_elementwise(
            """{
            .reg .pred p; .reg .b32 t;
            mov.u32 t, %tid.x;
            setp.eq.u32 p, t, 0;
            @p red.release.gpu.global.add.u32 [$1], 1;
            mov.u32 $0, t;
            }""",
            "=r,l",
            [counter],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
    else:
        tl.atomic_add(counter, 1, sem="release", scope="gpu")


@triton.jit
def wait(counter, target, limit, ASM: tl.constexpr):
    """Wait until ``target`` arrivals are counted, for at most ``limit`` polls.

    Returns 1 (int32, the same in every thread) when this or another program of the group has timed out, else 0. A program that times out
    poisons the counter, so that no other waits in vain. One thread polls; ``bar.red`` joins the CTA and tells all of it the outcome.
    """
    if ASM:
        late = tl.inline_asm_elementwise(
            """{
            .reg .pred p, q; .reg .b32 t, v, n;
            mov.u32 t, %tid.x;
            setp.ne.u32 q, t, 0;
            mov.u32 v, 0;
            mov.u32 n, 0;
            @q bra DONE;
            POLL:
            ld.acquire.gpu.global.u32 v, [$1];
            setp.ge.u32 p, v, $2;
            @p bra DONE;
            add.u32 n, n, 1;
            setp.lt.u32 p, n, $3;
            @p bra POLL;
            mov.u32 v, 0x40000000;
            red.relaxed.gpu.global.or.b32 [$1], v;
            DONE:
            setp.ge.u32 p, v, 0x40000000;
            bar.warp.sync 0xffffffff;
            bar.red.or.pred p, 0, p;
            selp.u32 $0, 1, 0, p;
            }""",
            "=r,l,r,r",
            [counter, target, limit],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
    else:
        polls = 0
        seen = tl.atomic_add(counter, 0, sem="acquire", scope="gpu")
        while (seen < target) & (polls < limit):
            seen = tl.atomic_add(counter, 0, sem="acquire", scope="gpu")
            polls += 1
        if seen < target:
            tl.atomic_or(counter, POISON, sem="relaxed", scope="gpu")
        late = ((seen < target) | (seen >= POISON)).to(tl.int32)
        tl.debug_barrier()
    return late
