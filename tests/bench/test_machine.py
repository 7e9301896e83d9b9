"""What a machine can do: constants are of the size that the work says."""

from types import SimpleNamespace

import pytest

from bench import machine


def test_constants(monkeypatch):
    monkeypatch.setattr(machine, "best", lambda work, seconds=0.4: (work(), 2.0)[1])  # every call takes two microseconds
    (found,) = machine.measure(SimpleNamespace(quick=True))
    assert found["case"] == "machine"
    assert found["multiply_adds_per_us"] == {"float32": 1024**3 / 2, "bfloat16": 1024**3 / 2}
    assert found["sigmoids_per_us"] == 32 * 1024
    assert found["bytes_per_us"]["256"] == 128 * 2**20
    assert found["bytes_per_us"]["0.25"] == 2**20 / 4 * 16 / 2  # sixteen times a call


def test_the_best_of_many(monkeypatch):
    now, takes = [0.0], iter([9.0, 5.0, 3.0, 4.0, 6.0, 7.0])  # the first warms up; five are timed at least
    monkeypatch.setattr(machine.time, "perf_counter", lambda: now[0])

    def work():
        now[0] += next(takes)

    assert machine.best(work) == pytest.approx(3.0 * 1e6)
    assert next(takes, None) is None
