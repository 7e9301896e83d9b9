"""Training learns, and goes on after an interruption as if there had been none."""

import io
import math
from itertools import pairwise

import pytest
import torch

from fusedrnn.training.recipe import Recipe
from fusedrnn.training.trainer import Trainer

from .words import lexicon

SMALL = {"hidden": 12, "embedding": 8, "batch_size": 6, "minutes": None}


def steps(trainer, count):
    return [trainer.step() for _ in range(count)]


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def bits(value):
    """A state, so that equal bits compare equal."""
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    return [bits(item) for item in value] if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize(("attention", "backend"), [("none", "reference"), ("bahdanau", "stepwise"), ("luong", "auto")])
def test_interrupted_and_resumed_is_the_same_to_the_bit(monkeypatch, attention, backend):
    monkeypatch.delenv("FUSEDRNN_BACKEND")
    recipe = Recipe(**SMALL, attention=attention, epochs=3, sampling=0.5, dropout=0.3, seed=4)
    whole = Trainer(recipe, lexicon(), backend)
    losses = steps(whole, 10)
    half = Trainer(recipe, lexicon(), backend)
    first = steps(half, 6)  # in the middle of the second of three epochs of four batches, where tokens are drawn
    assert (half.progress.epoch, half.progress.batch) == (1, 2)
    saved = through_a_file(half.state_dict())
    torch.manual_seed(99)
    other = Trainer(recipe, lexicon(), backend)
    steps(other, 1)
    torch.rand(3)
    other.load_state_dict(saved)
    assert first + steps(other, 4) == losses
    assert bits(other.state_dict()) == bits(whole.state_dict())


def test_executors_stay_those_that_auto_comes_to(auto):
    recipe = Recipe(**SMALL, epochs=1)
    before = torch.get_rng_state()
    trainer = Trainer(recipe, lexicon())
    assert set(trainer.backends) <= {"stepwise", "native"}
    torch.set_rng_state(before)
    again = Trainer(recipe, lexicon(), trainer.backends[0])
    assert again.backends == trainer.backends
    assert bits(again.state_dict()) == bits(trainer.state_dict())  # finding out has drawn nothing


@pytest.mark.parametrize("attention", ["none", "bahdanau", "luong"])
def test_learns_a_few_words_by_heart(attention):
    recipe = Recipe(
        attention=attention, hidden=32, embedding=16, batch_size=32, epochs=80, minutes=None, learning_rate=0.02, dropout=0.0,
        sampling=0.1, smoothing=0.0,
    )  # fmt: skip
    trainer = Trainer(recipe, lexicon(), "stepwise")
    first, *_, last = steps(trainer, 80)
    assert first > 4  # about log(74)
    assert last < 0.2  # two words have two pronunciations, of which it cannot know which is wanted
    assert trainer.done == 1
    assert trainer.validate().wer == 0
    assert trainer.progress.validations[0][1:] == (80, 0, 0)
    assert len(trainer.progress.curve) == 4
    assert trainer.model.training


def test_the_schedule():
    recipe = Recipe(epochs=10, learning_rate=1.0, sampling=0.2)
    rates = [recipe.rate(percent / 100) for percent in range(101)]
    assert 0 < rates[0] < rates[1] < rates[2] == 1
    assert all(before > after for before, after in pairwise(rates[2:]))
    assert rates[-1] == pytest.approx(0)
    assert [recipe.sampled(done) for done in (0, 0.25, 0.625, 1)] == pytest.approx([0, 0, 0.1, 0.2])
    assert [recipe.progress(epochs, 9e9) for epochs in (0, 2.5, 10, 11)] == [0, 0.25, 1, 1]
    timed = Recipe(minutes=2)
    assert [timed.progress(99, seconds) for seconds in (0, 30, 120, 500)] == [0, 0.25, 1, 1]


def test_the_loss_counts_live_phonemes_alone():
    trainer = Trainer(Recipe(**SMALL, epochs=1, dropout=0.0, smoothing=0.0), lexicon(), "reference")
    pairs = trainer._pairs
    rows = trainer.batches()[0]
    together = trainer.loss(pairs.batch(rows), 0.0).item()
    alone = [(trainer.loss(pairs.batch(rows[[place]]), 0.0).item(), len(pairs.batch(rows[[place]]).targets)) for place in range(len(rows))]
    assert together == pytest.approx(sum(loss * count for loss, count in alone) / sum(count for _, count in alone), rel=1e-5)


def test_another_recipe_and_other_words():
    trainer = Trainer(Recipe(**SMALL, epochs=2), lexicon(), "reference")
    state = through_a_file(trainer.state_dict())
    with pytest.raises(ValueError, match=r"recipe are .*'epochs': 2.* this run's .*'epochs': 3"):
        Trainer(Recipe(**SMALL, epochs=3), lexicon(), "reference").load_state_dict(state)
    with pytest.raises(ValueError, match=r"the checkpoint's words are [0-9a-f]{8}, this run's [0-9a-f]{8}"):
        Trainer(Recipe(**SMALL, epochs=2), lexicon({"cat": [["K", "AE1", "T"]]}), "reference").load_state_dict(state)


def test_a_loss_that_is_not_finite():
    trainer = Trainer(Recipe(**SMALL, epochs=1), lexicon(), "reference")
    with torch.no_grad():
        trainer.model.project.bias.fill_(math.nan)
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step 1: lower the learning rate of 0.002"):
        trainer.step()


def test_nothing_to_train_on():
    with pytest.raises(ValueError, match="none of the 40 words is one to train on"):
        Trainer(Recipe(**SMALL, epochs=1), lexicon({}), "reference")
