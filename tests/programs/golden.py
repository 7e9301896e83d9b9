"""A program against its recording. In: a function of the inputs; out: a pytest test that compares values, dtypes, shapes and gradients."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import fusedrnn
from fusedrnn import PlanError

from .cells import numbers, real
from .inputs import inputs, loss_weights, named_leaves

RECORDINGS = Path(__file__).parents[1] / "golden" / "programs.npz"
TOLERANCE = 1e-9  # float64 on both sides; measured: below 1e-14
WRITTEN = set()  # the recordings that some test repeats


def golden(name, *, tolerance=TOLERANCE, finite_gradients=False, eager_only=False, not_native=False, not_persistent=None):
    """Turn ``test(p, raw_rnn)``, which returns what raw_rnn returns, into a test against the recording ``name``.

    Args:
        name: of the program in inputs.py and record_programs.py.
        tolerance: absolute and relative.
        finite_gradients: compare no gradients, only that they are finite (where TensorFlow's are not).
        eager_only: the program cannot be captured: any backend but "reference" must say so.
        not_native: it can be captured, and "native" must say what it does not have.
        not_persistent: it can be captured, and the reason for which "persistent" refuses it holds this.

    "persistent" runs in float32: it may be twice as far from the recording as `reference` in float32.
    """
    WRITTEN.add(name)

    def decorate(program):
        def test(backend):
            if (eager_only and backend != "reference") or (not_native and backend == "native"):
                with pytest.raises(PlanError) as error:
                    run(name, program, backend)
                assert error.value.reason
                assert error.value.location
                return
            if backend == "persistent":
                repeat_in_float32(name, program, not_persistent, tolerance, finite_gradients)
                return
            found, expected = run(name, program, backend), recorded(name)
            if finite_gradients:
                gradients = {path: found.pop(path) for path in list(found) if path.startswith("grad.")}
                assert all(gradient.isfinite().all() for gradient in gradients.values())
            assert sorted(found) == sorted(expected)
            for path, value in found.items():
                compare(f"{name}/{path}", value, expected[path], tolerance)

        test.__name__, test.__module__, test.__doc__ = program.__name__, program.__module__, program.__doc__
        return test

    return decorate


def repeat_in_float32(name, program, refused, tolerance, finite_gradients):
    """The program as one persistent kernel, or the reason why it is none."""
    with numbers(torch.float32):
        if refused is not None:
            with pytest.raises(PlanError, match=refused):
                run(name, program, "persistent")
            return
        fallbacks = fusedrnn.fallbacks()
        found, plain = run(name, program, "persistent"), run(name, program, "reference")
    assert forward_only(fusedrnn.fallbacks()) == forward_only(fallbacks)  # nothing else ran in its place
    expected = recorded(name)
    assert sorted(found) == sorted(plain)
    for path, value in found.items():
        assert (value.dtype, value.shape) == (plain[path].dtype, plain[path].shape), path
        if finite_gradients and path.startswith("grad."):
            assert value.isfinite().all(), path
            continue
        wanted = torch.from_numpy(np.asarray(expected[path]))
        if value.is_floating_point():
            mine, allowed = (float((one.double() - wanted.double()).abs().amax()) if one.numel() else 0.0 for one in (value, plain[path]))
            assert mine <= max(2 * allowed, tolerance) + 1e-5, f"{name}/{path}: {mine} from the recording, reference {allowed}"
        else:
            assert torch.equal(value, wanted.to(value.dtype)), path


def given(name):
    """The inputs of a program as tensors, float ones as leaves with gradients."""
    tensors = {key: torch.from_numpy(value) for key, value in inputs(name).items()}
    tensors = {key: value.to(real()) if value.is_floating_point() else value for key, value in tensors.items()}
    return SimpleNamespace(**{key: value.requires_grad_(value.is_floating_point()) for key, value in tensors.items()})


def run(name, program, backend):
    """{path: tensor} of the emits (stacked), the states and the gradients of the loss that record_programs.py describes."""
    p = given(name)
    emit, state, loop_state = program(p, partial(fusedrnn.raw_rnn, backend=backend))
    leaves = {**named_leaves(emit, "emit"), **named_leaves(state, "state"), **named_leaves(loop_state, "loop_state")}
    leaves = {path: leaf.stack() if isinstance(leaf, fusedrnn.TensorArray) else leaf for path, leaf in leaves.items()}
    floats = {path: leaf for path, leaf in leaves.items() if leaf.is_floating_point()}
    loss = sum((leaf.double() * torch.from_numpy(loss_weights(name, path, tuple(leaf.shape)))).sum() for path, leaf in floats.items())
    sources = {key: value for key, value in vars(p).items() if value.requires_grad}
    gradients = torch.autograd.grad(loss, list(sources.values()), allow_unused=True)
    for (key, source), gradient in zip(sources.items(), gradients, strict=True):
        leaves[f"grad.{key}"] = torch.zeros_like(source) if gradient is None else gradient
    return {path: leaf.detach() for path, leaf in leaves.items()}


@cache
def _recordings():
    with np.load(RECORDINGS) as file:
        return {path: file[path] for path in file.files}


def recorded(name):
    """{path: array} that TensorFlow computed for a program."""
    return {path.removeprefix(f"{name}/"): array for path, array in _recordings().items() if path.startswith(f"{name}/")}


def compare(label, value, expected, tolerance):
    if value.dtype == torch.bfloat16:
        value = value.float()  # recorded so: numpy has no bfloat16
    torch.testing.assert_close(
        value, torch.from_numpy(np.asarray(expected)), rtol=tolerance, atol=tolerance, msg=lambda text: f"{label}: {text}"
    )  # fmt: skip


def forward_only(fallbacks: dict[str, int]) -> dict[str, int]:
    """Without those of a backward, which may run step by step where it cannot be compiled."""
    return {reason: count for reason, count in fallbacks.items() if not reason.startswith("the backward of a loop")}
