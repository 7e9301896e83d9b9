"""Run by test_random.py in a process of its own, because Triton decides at import whether it interprets: tl.philox draws our words."""

import torch
import triton
import triton.language as tl

from fusedrnn import random


@triton.jit
def draw(out, seeds, time, site, lineage, COLUMNS: tl.constexpr):  # noqa: N803
    row = tl.program_id(0)
    column = tl.arange(0, COLUMNS)
    zero = column * 0
    word, _, _, _ = tl.philox(tl.load(seeds + row), column, zero + time, zero + site, zero + lineage)
    tl.store(out + row * COLUMNS + column, word.to(tl.int64))


def main():
    seeds = random.row_seeds(7, 5)
    out = torch.zeros(5, 16, dtype=torch.int64)
    draw[(5,)](out, seeds, 3, 2, 9, COLUMNS=16)
    assert torch.equal(out & 0xFFFFFFFF, random.philox(seeds[:, None], torch.arange(16), 3, 2, 9))


if __name__ == "__main__":
    main()
