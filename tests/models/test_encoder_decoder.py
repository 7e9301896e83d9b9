"""EncoderDecoder: its losses and its greedy decoding agree, in any batch and on every executor; it comes back from its file as it was."""

import json

import pytest
import safetensors.torch
import torch

from fusedrnn.capture import cache
from fusedrnn.models import EncoderDecoder, g2p_checkpoint
from fusedrnn.models.encoder_decoder import ATTENTIONS, Sizes
from fusedrnn.models.phonemizer import spelled

WORDS = ["a", "is", "cat", "don't", "naïve", "encoder", "", "antidisestablishmentarianism"]


def small(attention, **options):
    return EncoderDecoder(Sizes(attention, 5, 7), **options)


def tokens_of(model, words):
    """What the model says, as targets with their lengths."""
    said = [g2p_checkpoint.phoneme_tokens(phonemes) for phonemes in model(words)]
    lengths = torch.tensor([len(tokens) for tokens in said])
    targets = torch.zeros(int(lengths.max()), len(words), dtype=torch.int64)
    for row, tokens in enumerate(said):
        targets[: len(tokens), row] = torch.tensor(tokens)
    return targets, lengths


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_targets_that_it_would_say_are_the_most_likely(attention):
    model = small(attention).eval()
    targets, lengths = tokens_of(model, WORDS)
    (spelling,) = spelled(WORDS, len(WORDS), by_length=False)
    encoded = model.encode(spelling.graphemes, spelling.lengths)
    assert encoded.memory.shape == (len(WORDS), 29, 14)
    logits = model.logits(encoded, targets, lengths)
    assert logits.shape == (*targets.shape, len(g2p_checkpoint.PHONEMES))
    inside = torch.arange(len(targets))[:, None] < lengths.clamp(max=20) - (lengths > 20).int()  # at 20 phonemes the end is not said
    assert torch.equal(logits.argmax(-1)[inside], targets[inside])


@pytest.mark.parametrize("backend", ["reference", "stepwise", "native"])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_word_in_a_batch_is_as_alone(attention, backend):
    model = small(attention).double().eval()
    assert model(WORDS, backend=backend) == [model([word], backend="reference")[0] for word in WORDS]


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_gradients_are_those_of_reference(attention):
    model = small(attention, dropout=0.4).double().train()
    (spelling,) = spelled(WORDS, len(WORDS), by_length=False)
    targets, lengths = torch.randint(4, 74, (6, len(WORDS))), torch.tensor([6, 1, 3, 2, 6, 4, 5, 6])

    def gradients(backend, sampling):
        torch.manual_seed(3)
        encoded = model.encode(spelling.graphemes, spelling.lengths, backend=backend)
        logits = model.logits(encoded, targets, lengths, sampling=sampling, backend=backend)
        return torch.autograd.grad(logits.tanh().sum(), list(model.parameters()))

    for sampling in (0.0, 0.5):
        expected = gradients("reference", sampling)
        for found, wanted, name in zip(gradients("stepwise", sampling), expected, dict(model.named_parameters()), strict=True):
            torch.testing.assert_close(found, wanted, msg=name)
            assert wanted.any(), name


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_one_capture_serves_all_sizes(attention):
    model = small(attention, dropout=0.1).train()
    cache.clear()

    def run(batch, letters, phonemes):
        lengths = torch.randint(1, letters + 1, (batch,)).index_fill(0, torch.tensor([0]), letters)
        target_lengths = torch.randint(1, phonemes + 1, (batch,)).index_fill(0, torch.tensor([0]), phonemes)
        encoded = model.encode(torch.randint(3, 29, (letters, batch)), lengths, backend="stepwise")
        for sampling in (0.0, 0.3):
            model.logits(encoded, torch.randint(4, 74, (phonemes, batch)), target_lengths, sampling=sampling, backend="stepwise")

    run(6, 9, 8)
    assert cache.size() == 3  # the encoder, teacher forcing, scheduled sampling
    for sizes in ((6, 4, 5), (5, 12, 3), (9, 8, 9), (2, 2, 2)):
        run(*sizes)
    assert cache.size() == 3


def test_dropout_is_for_training_and_follows_the_seed():
    model = small("luong", dropout=0.5)
    (spelling,) = spelled(WORDS, len(WORDS))

    def logits(seed):
        torch.manual_seed(seed)
        encoded = model.encode(spelling.graphemes, spelling.lengths)
        return model.logits(encoded, torch.full((3, len(WORDS)), 9), torch.full((len(WORDS),), 3))

    model.train()
    assert torch.equal(logits(1), logits(1))
    assert not torch.equal(logits(1), logits(2))
    model.eval()
    assert torch.equal(logits(1), logits(2))


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_saved_and_loaded(attention, tmp_path):
    model = small(attention, dropout=0.3)
    model.save(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    again = EncoderDecoder.load(tmp_path)
    assert (again.sizes, again.training) == (model.sizes, False)
    assert again(WORDS) == model.eval()(WORDS)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


def test_files_that_are_no_model(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model.safetensors does not exist: `fusedrnn train g2p --out"):
        EncoderDecoder.load(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = small("none").state_dict()
    sizes = json.dumps({"attention": "none", "embedding_size": 5, "hidden_size": 8})
    for content in (
        b"",
        b"nonsense",
        safetensors.torch.save(weights),
        safetensors.torch.save(weights, metadata={"sizes": "{}"}),
        safetensors.torch.save(weights, metadata={"sizes": "nonsense"}),
        safetensors.torch.save(weights, metadata={"sizes": sizes}),
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="is no model of `fusedrnn train g2p`"):
            EncoderDecoder.load(tmp_path)


def test_bad_sizes():
    with pytest.raises(ValueError, match="attention must be one of 'none', 'bahdanau', 'luong', got 'bert'"):
        Sizes("bert")
    with pytest.raises(ValueError, match="hidden_size must be an int of at least 1, got 0"):
        Sizes(hidden_size=0)
