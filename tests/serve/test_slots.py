"""Rows that come and go give what each would give alone, to the bit, whoever else is there."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fusedrnn
from fusedrnn import feedback
from fusedrnn.errors import PlanError
from fusedrnn.kernels import gpu
from fusedrnn.serve import Model, Row, Slots
from tests.serve.loops import SIZE, VOCABULARY, Read, Reader, Say, Sayer, alone, weights

pytestmark = pytest.mark.usefixtures("auto")


def slots_of(model: Model, count: int) -> Slots:
    loop = model.loop(count)
    return Slots(loop.cell, loop.loop_fn, loop.rows)


def values(model: Model, request: Any) -> Any:
    (made,) = model.admit([request])
    return made


def run(slots: Slots, model: Model, slot: int, request: Any, steps: int = 200) -> tuple[list[np.ndarray], Any]:
    """A request in a slot, to its end, in launches of so many steps."""
    assert slots.admit({slot: values(model, request)}) == {}
    parts: list[list[np.ndarray]] = []
    while not slots.finished[slot]:
        launch = slots.launch(steps)
        parts.append([emit[: launch.taken[slot], slot].copy() for emit in launch.emits])
    return [np.concatenate(leaves) for leaves in zip(*parts, strict=True)], slots.final_state(slot)


def same_bits(mine: list[np.ndarray], theirs: list[np.ndarray]) -> bool:
    return all(a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize(
    ("model", "requests"), [(Sayer(), [Say(s, 3 + s % 8) for s in range(40)]), (Reader(), [Read(s, s % 12) for s in range(40)])]
)
def test_a_request_has_the_same_bits_alone_and_in_any_company(model: Model, requests: list[Any]) -> None:
    single = slots_of(model, 2)
    want = {request: run(single, model, 0, request) for request in requests if getattr(request, "length", 1)}
    slots, order = slots_of(model, 13), random.Random(0)
    waiting, at, got = list(want), dict[int, Any](), {request: list[list[np.ndarray]]() for request in want}
    order.shuffle(waiting)
    ended = {}
    while waiting or at:
        empty = [slot for slot in range(13) if slot not in at]
        entering = {slot: waiting.pop() for slot in order.sample(empty, min(order.randint(0, 4), len(waiting), len(empty)))}
        assert slots.admit({slot: values(model, request) for slot, request in entering.items()}) == {}
        at |= entering
        launch = slots.launch(order.choice([1, 1, 2, 3, 5]))
        for slot, request in list(at.items()):
            got[request].append([emit[: launch.taken[slot], slot].copy() for emit in launch.emits])
            if launch.finished[slot]:
                ended[request] = slots.final_state(slot)
                del at[slot]
    for request, (emits, state) in want.items():
        mine = [np.concatenate(leaves) for leaves in zip(*got[request], strict=True)]
        assert same_bits(mine, emits), request
        leaves = fusedrnn.trees.leaves(state), fusedrnn.trees.leaves(ended[request])
        assert all(torch.equal(a, b) for a, b in zip(*leaves, strict=True))


@pytest.mark.parametrize(
    ("model", "request_"), [(Sayer(), Say(5)), (Reader(), Read(6, 9)), (Reader(), Read(8, 11)), (Reader(), Read(2, 1))]
)
def test_a_request_gives_what_raw_rnn_gives_for_its_row(model: Model, request_: Any) -> None:
    emits, state = run(slots_of(model, 6), model, 3, request_, steps=2)
    want, final = alone(model, request_, slots=6, slot=3)
    for mine, theirs in zip(emits, want, strict=True):
        torch.testing.assert_close(torch.from_numpy(mine), theirs, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(fusedrnn.trees.leaves(state), fusedrnn.trees.leaves(final), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_rows_draw_by_their_own_step_and_seed_and_not_by_their_slot() -> None:
    model = Reader()
    slots = slots_of(model, 6)
    assert slots.admit({0: values(model, Read(1, 6))}) == {}
    slots.launch(3)
    assert slots.admit({3: values(model, Read(1, 6))}) == {}  # the same request, three steps later and elsewhere
    launch = slots.launch(3)
    later = slots.launch(3)
    first = launch.emits[0][:, 0], later.emits[0]
    both, _ = run(slots_of(model, 6), model, 1, Read(1, 6))
    assert same_bits([np.concatenate([launch.emits[0][:, 3], first[1][:, 3]])], [both[0]])
    assert same_bits([first[0]], [both[0][3:]])


def test_nan_of_one_request_touches_no_other() -> None:
    model = Sayer()
    slots = slots_of(model, 3)
    want, _ = run(slots, model, 1, Say(4))
    assert slots.admit({0: values(model, Say(1, spoiled="nan")), 1: values(model, Say(4)), 2: values(model, Say(2, spoiled="nan"))}) == {}
    launch = slots.launch(200)
    assert same_bits([emit[: launch.taken[1], 1] for emit in launch.emits], want)
    assert np.isnan(launch.emits[1][0, 0]).all()
    again, _ = run(slots, model, 0, Say(4))  # where NaN has been
    assert same_bits(again, want)


def test_a_row_that_looks_where_there_is_nothing_fails_alone() -> None:
    model = Sayer()
    slots = slots_of(model, 8)
    long = [seed for seed in range(40) if len(run(slots, model, 0, Say(seed, 6))[0][0]) == 6][:3]
    want = {slot: run(slots, model, 0, Say(slot + 50, 6))[0] for slot in (0, 1, 4, 5, 7)}
    bad = {2: Say(long[0], 9, "jump"), 3: Say(long[1], 9, "jump"), 6: Say(long[2], 2, "jump")}  # the last has ended before it jumps
    admitted = {slot: Say(slot + 50, 6) for slot in want} | bad
    assert slots.admit({slot: values(model, request) for slot, request in admitted.items()}) == {}
    launch = slots.launch(6)
    assert launch.failed == {2, 3}
    for slot, emits in want.items():
        assert same_bits([emit[: launch.taken[slot], slot] for emit in launch.emits], emits)
    assert launch.taken[6] == 2
    assert slots.finished.all()


def test_a_request_that_fails_at_time_0_stays_out_and_the_others_enter() -> None:
    model = Sayer()
    slots = slots_of(model, 6)
    want, _ = run(slots, model, 0, Say(3))
    admitted = {0: Say(1, spoiled="start"), 1: Say(3), 2: Say(2, spoiled="shape"), 3: Say(4, most=0)}
    wrong = slots.admit({slot: values(model, request) for slot, request in admitted.items()})
    assert {slot: type(error) for slot, error in wrong.items()} == {0: IndexError, 2: ValueError}
    assert "state must have shape [16], got [3]" in str(wrong[2])
    assert slots.finished.tolist() == [True, False, True, True, True, True]
    launch = slots.launch(200)
    assert same_bits([emit[: launch.taken[1], 1] for emit in launch.emits], want)


def test_slots_are_zeroed_when_a_request_enters() -> None:
    model = Reader()
    slots = slots_of(model, 2)
    run(slots, model, 0, Read(1, 11))
    assert slots.admit({0: values(model, Read(2, 3))}) == {}
    assert slots.rows["x"].tensor[3:, 0].abs().max() == 0
    assert slots.rows["x"].tensor[:3, 0].abs().min() > 0


def test_values_of_another_name_dtype_or_length_are_refused() -> None:
    model = Reader()
    slots = slots_of(model, 2)
    good = values(model, Read(1, 3))
    for change, words in [
        ({"x": torch.zeros(12, 8)}, r"x must have shape \[11, 8\] or fewer in the first dimension, got \[12, 8\]"),
        ({"length": torch.tensor(3.0)}, "length must be torch.int64, got torch.float32"),
        ({"length": 3.0}, "length must be torch.int64, got a float"),
        ({"length": 2**63}, "length must be torch.int64, which does not hold 9223372036854775808"),
        ({"x": "frames"}, "x must be a tensor, a numpy array or a number, got a str"),
        ({"length": None}, "length must be a tensor, a numpy array or a number, got a NoneType"),
        ({"x": 3}, "x must be torch.float32, got torch.int64"),
        ({"other": torch.zeros(())}, "a request must give gain, length, seed, x; got gain, length, other, seed, x"),
    ]:
        with pytest.raises(ValueError, match=words):
            slots._rows.checked({**good, **change})


def refusal(cell: Any, loop_fn: Any, rows: dict[str, Row]) -> PlanError:
    with pytest.raises(PlanError) as raised:
        Slots(cell, loop_fn, rows)
    return raised.value


def test_rows_that_depend_on_one_another_are_refused_with_the_reason() -> None:
    cell, embedding, project = weights()
    state = torch.zeros(4, SIZE)

    def loop_fn(time: Any, output: Any, h: Any, _: Any) -> Any:
        if output is None:
            return False, embedding(torch.zeros(4, dtype=torch.int64)), state, torch.zeros(VOCABULARY), None
        logits = project(output - output.mean(0))
        return time >= 5, embedding(logits.argmax(-1)), h, logits, None

    error = refusal(cell, loop_fn, {"state": Row(state)})
    assert "mean" in error.reason
    assert "over the batch" in error.reason
    assert __file__ in (error.location or "")


def test_a_seed_of_the_loop_or_of_the_place_is_refused() -> None:
    cell, embedding, project = weights()
    state = torch.zeros(4, SIZE)
    unseeded = feedback.sample(embedding, project, 1, None, state, 5)
    assert "give each row its seed" in refusal(cell, unseeded, {"state": Row(state)}).reason
    one_seed = feedback.sample(embedding, project, 1, None, state, 5, seed=1)
    assert "a row's place in the batch" in refusal(cell, one_seed, {"state": Row(state)}).reason


def test_products_at_time_0_are_refused() -> None:
    cell, embedding, project = weights()
    code, bridge = torch.zeros(4, 5), nn.Linear(5, SIZE).requires_grad_(False)
    loop_fn = feedback.greedy(embedding, project, 1, None, torch.zeros(4, SIZE), 5)

    def multiplies(time: Any, output: Any, h: Any, carried: Any) -> Any:
        finished, inputs, state, emit, carried = loop_fn(time, output, h, carried)
        return finished, inputs, bridge(code) if output is None else state, emit, carried

    assert "multiplies at time 0" in refusal(cell, multiplies, {"code": Row(code)}).reason


def test_rows_must_be_closed_over_and_have_the_slots() -> None:
    cell, embedding, project = weights()
    state = torch.zeros(4, SIZE)
    loop_fn = feedback.greedy(embedding, project, 1, None, state, 5)
    with pytest.raises(ValueError, match="other is not among the tensors that loop_fn closes over"):
        Slots(cell, loop_fn, {"other": Row(torch.zeros(4))})
    with pytest.raises(ValueError, match=r"state must have the 4 slots in dimension 1, got shape \[4, 16\]"):
        Slots(cell, loop_fn, {"state": Row(state, 1)})


@pytest.mark.skipif(not gpu.EMULATED, reason="persistent kernels are emulated where FUSEDRNN_EMULATE=1")
def test_a_persistent_kernel_serves_too() -> None:
    model = Sayer()
    loop = model.loop(5)
    slots = Slots(loop.cell, loop.loop_fn, loop.rows, backend="persistent")
    assert slots.executor == "persistent"
    got: dict[int, list[np.ndarray]] = {0: [], 3: []}
    for enter in ({0: Say(5, 4), 1: Say(1, spoiled="nan")}, {3: Say(6, 3)}, {}):
        assert slots.admit({slot: values(model, request) for slot, request in enter.items()}) == {}
        launch = slots.launch(2)
        for slot, parts in got.items():
            parts.append(launch.emits[1][: launch.taken[slot], slot].copy())
    assert slots.finished.tolist() == [True, False, True, True, True]
    for slot, request in ((0, Say(5, 4)), (3, Say(6, 3))):
        (_, want), _ = alone(model, request)
        torch.testing.assert_close(torch.from_numpy(np.concatenate(got[slot])), want, rtol=1e-4, atol=1e-4)


def test_a_backend_that_is_none_is_refused() -> None:
    loop = Sayer().loop(5)
    with pytest.raises(ValueError, match="backend must be 'auto', 'native' or 'persistent', got 'stepwise'"):
        Slots(loop.cell, loop.loop_fn, loop.rows, backend="stepwise")


def test_weights_that_change_between_launches_are_seen() -> None:
    model = Sayer()
    slots = slots_of(model, 3)
    run(slots, model, 0, Say(4))
    with torch.no_grad():
        model.project.bias.add_(torch.linspace(-2, 2, VOCABULARY))
    changed, _ = run(slots, model, 1, Say(4))
    fresh, _ = run(slots_of(model, 3), model, 1, Say(4))
    assert same_bits(changed, fresh)


def test_a_row_that_fails_at_its_first_step_leaves_the_others_as_they_were() -> None:
    model = Sayer()
    slots = slots_of(model, 4)
    long = next(seed for seed in range(40) if len(run(slots, model, 0, Say(seed, 9))[0][0]) == 9)
    want, _ = run(slots, model, 1, Say(4, 9))
    for _ in range(3):
        assert slots.admit({0: values(model, Say(long, 9, "jump"))}) == {}
        assert slots.launch(2).taken[0] == 2
        assert slots.launch(2).failed == {0}  # alone, at the first step of a launch
        again, _ = run(slots, model, 1, Say(4, 9), steps=2)
        assert same_bits(again, want)


def test_values_may_be_tensors_that_want_gradients_arrays_or_numbers() -> None:
    model = Sayer()
    slots = slots_of(model, 3)
    want, _ = run(slots, model, 0, Say(4))
    given = values(model, Say(4))
    changed = {**given, "state": given["state"].clone().requires_grad_(), "most": 9, "start": given["start"].numpy()}
    assert slots.admit({1: changed, 2: given}) == {}
    launch = slots.launch(200)
    for slot in (1, 2):
        assert same_bits([emit[: launch.taken[slot], slot] for emit in launch.emits], want)
