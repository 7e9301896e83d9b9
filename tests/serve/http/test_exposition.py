"""What Prometheus reads, read as Prometheus reads it."""

from __future__ import annotations

import math

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain

from fusedrnn.serve import CharactersModel
from tests.serve.http.conftest import Running, characters_engine


def samples(text: str, parse: object = plain) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse(text)  # type: ignore[operator]
        for sample in family.samples
    }


@pytest.fixture
def made(characters: CharactersModel) -> Running:
    with Running(characters_engine(characters)) as running, running.client() as client:
        body = {"text_input": "a", "parameters": {"max_tokens": 50, "temperature": 1.0, "seed": 1, "one_word": False}}
        for _ in range(3):
            assert client.post("/v2/models/chars/generate", json=body).status_code == 200
        assert client.post("/v2/models/chars/generate", json=body, headers={"Request-Timeout": "0"}).status_code == 504
        assert client.post("/v2/models/chars/generate", json={"text_input": "1"}).status_code == 422
        running.text = client.get("/metrics").text  # type: ignore[attr-defined]
        asked = {"Accept": "application/openmetrics-text; version=1.0.0"}
        running.open = client.get("/metrics", headers=asked)  # type: ignore[attr-defined]
    return running


def test_every_number_of_the_engine_is_there(made: Running) -> None:
    found, metrics = samples(made.text), made.engine.metrics  # type: ignore[attr-defined]

    def value(name: str, **labels: str) -> float:
        return found[f"fusedrnn_{name}", frozenset({"model": "chars", **labels}.items())]

    assert value("running") == value("waiting") == 0
    assert value("slots") == 4
    assert value("accepted_total") == 4
    assert value("ended_total", outcome="completed") == 3
    assert value("ended_total", outcome="expired") == 1
    assert value("rejected_total", reason="bad request") == 1
    assert value("row_steps_total") == metrics.row_steps == 3 * 51
    assert value("steps_total") == metrics.steps
    for name, histogram in {
        "occupancy_ratio": metrics.occupancy,
        "steps_per_launch": metrics.steps_per_launch,
        "queue_seconds": metrics.queue_seconds,
        "first_chunk_seconds": metrics.first_chunk_seconds,
        "step_seconds": metrics.step_seconds,
        "total_seconds": metrics.total_seconds,
        "launch_seconds": metrics.launch_seconds,
    }.items():
        assert value(f"{name}_count") == histogram.count > 0
        assert math.isclose(value(f"{name}_sum"), histogram.sum)
        counts = [value(f"{name}_bucket", le=str(float(bound))) for bound in histogram.bounds]
        assert counts == sorted(counts)
        assert counts[0] == histogram.counts[0]
        assert value(f"{name}_bucket", le="+Inf") == histogram.count
    answer: httpx.Response = made.open  # type: ignore[attr-defined]
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert samples(answer.text, openmetrics).keys() == found.keys()
