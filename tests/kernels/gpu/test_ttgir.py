"""Which argument a load reads from is followed through pointers, loops and branches."""

import pytest

pytest.importorskip("triton")
from fusedrnn.kernels.gpu.ttgir import loads_in_step_loop

HEAD = """module {
  tt.func public @f(%w: !tt.ptr<bf16> {tt.divisibility = 16 : i32} loc("w"(#loc)), %x: !tt.ptr<bf16> loc("x"(#loc)), %T: i32) {
    %c0 = arith.constant 0 : i32
"""
TAIL = """    tt.return
  }
}
"""


def loads(*lines):
    return loads_in_step_loop(HEAD + "".join(f"    {line}\n" for line in lines) + TAIL, ["w", "x", "T"])


def test_only_the_longest_loop_counts():
    assert loads(
        "%0 = tt.load %w : !tt.ptr<bf16> loc(#loc1)",
        "scf.for %i = %c0 to %T step %c0  : i32 {",
        "  %1 = tt.load %w : !tt.ptr<bf16>",
        "}",
        "scf.for %i = %c0 to %T step %c0  : i32 {",
        "  %p = tt.addptr %x, %i : !tt.ptr<bf16>, i32",
        "  %q = tt.splat %p : !tt.ptr<bf16> -> tensor<4x!tt.ptr<bf16>, #b>",
        "  %2 = tt.load %q : tensor<4x!tt.ptr<bf16>, #b>",
        "}",
    ) == ["x"]


def test_what_was_loaded_is_no_address():
    assert loads(
        "scf.for %i = %c0 to %T step %c0  : i32 {",
        "  %1 = tt.load %w : !tt.ptr<i32>",
        "  %p = tt.addptr %x, %1 : !tt.ptr<bf16>, i32",
        "  %2 = tt.load %p : !tt.ptr<bf16>",
        "  tt.store %p, %2 : !tt.ptr<bf16>",
        "}",
    ) == ["w", "x"]


def test_pointers_carried_by_a_loop():
    assert loads(
        "%r:2 = scf.for %i = %c0 to %T step %c0 iter_args(%p = %x, %n = %c0) -> (!tt.ptr<bf16>, i32)  : i32 {",
        "  %1 = tt.load %p : !tt.ptr<bf16>",
        "  %q = tt.addptr %w, %i : !tt.ptr<bf16>, i32",
        "  scf.yield %q, %n : !tt.ptr<bf16>, i32",
        "}",
    ) == ["w|x"]


def test_a_while_hands_over_what_its_condition_passes():
    assert loads(
        "%r:2 = scf.while (%t = %c0, %p = %w) : (i32, !tt.ptr<bf16>) -> (i32, !tt.ptr<bf16>) {",
        "  %go = arith.cmpi slt, %t, %T : i32",
        "  scf.condition(%go) %t, %p : i32, !tt.ptr<bf16>",
        "} do {",
        '^bb0(%t: i32 loc("t"), %a: !tt.ptr<bf16>):',
        "  %m = ttg.async_copy_global_to_local %a, %c0 : !tt.ptr<bf16> -> <64xbf16>",
        '  %s = tt.elementwise_inline_asm "{ POLL: }" {pure = false} %x : !tt.ptr<bf16> -> i32',
        "  scf.yield %t, %a : i32, !tt.ptr<bf16>",
        "} loc(#loc3)",
    ) == ["w"]


def test_a_pointer_chosen_by_a_branch_may_be_either():
    assert loads(
        "scf.for %i = %c0 to %T step %c0  : i32 {",
        "  %p = scf.if %go -> (!tt.ptr<bf16>) {",
        "    scf.yield %w : !tt.ptr<bf16>",
        "  } else {",
        "    scf.yield %x : !tt.ptr<bf16>",
        "  }",
        "  %1 = tt.load %p : !tt.ptr<bf16>",
        "}",
    ) == ["w|x"]


def test_no_loop_no_loads():
    assert loads("%0 = tt.load %w : !tt.ptr<bf16>") == []
