"""The published grapheme-to-phoneme weights. In: the installed package g2p-en; out: its arrays, checked, and its two tables.

The package itself is never imported: importing it reaches for the network. Source: https://github.com/Kyubyong/g2p (Apache-2.0).
"""

from __future__ import annotations

import importlib.util
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

GRAPHEMES = ("<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz")
PHONEMES = (
    "<pad>", "<unk>", "<s>", "</s>",
    "AA0", "AA1", "AA2", "AE0", "AE1", "AE2", "AH0", "AH1", "AH2", "AO0", "AO1", "AO2", "AW0", "AW1", "AW2", "AY0", "AY1", "AY2",
    "B", "CH", "D", "DH", "EH0", "EH1", "EH2", "ER0", "ER1", "ER2", "EY0", "EY1", "EY2", "F", "G", "HH", "IH0", "IH1", "IH2",
    "IY0", "IY1", "IY2", "JH", "K", "L", "M", "N", "NG", "OW0", "OW1", "OW2", "OY0", "OY1", "OY2", "P", "R", "S", "SH", "T", "TH",
    "UH0", "UH1", "UH2", "UW", "UW0", "UW1", "UW2", "V", "W", "Y", "Z", "ZH",
)  # fmt: skip
GRAPHEME_UNKNOWN, GRAPHEME_END = GRAPHEMES.index("<unk>"), GRAPHEMES.index("</s>")
PHONEME_START, PHONEME_END = PHONEMES.index("<s>"), PHONEMES.index("</s>")
MAX_STEPS = 20  # the decoder stops here where no </s> came

EMBEDDING_SIZE = HIDDEN_SIZE = 256
_GRU = {
    "w_ih": (3 * HIDDEN_SIZE, EMBEDDING_SIZE),
    "w_hh": (3 * HIDDEN_SIZE, HIDDEN_SIZE),
    "b_ih": (3 * HIDDEN_SIZE,),
    "b_hh": (3 * HIDDEN_SIZE,),
}
SHAPES: dict[str, tuple[int, ...]] = {
    "enc_emb": (len(GRAPHEMES), EMBEDDING_SIZE),
    **{f"enc_{name}": shape for name, shape in _GRU.items()},
    "dec_emb": (len(PHONEMES), EMBEDDING_SIZE),
    **{f"dec_{name}": shape for name, shape in _GRU.items()},
    "fc_w": (len(PHONEMES), HIDDEN_SIZE),
    "fc_b": (len(PHONEMES),),
}

_INSTALL = "pip install 'fusedrnn[demo]', or in a clone pip install -e '.[demo]'"

_GRAPHEME_INDEX = {grapheme: index for index, grapheme in enumerate(GRAPHEMES) if len(grapheme) == 1}
_PHONEME_INDEX = {phoneme: index for index, phoneme in enumerate(PHONEMES)}


def path() -> Path:
    """Where the installed package keeps its weights.

    Raises:
        ModuleNotFoundError: g2p-en is not installed; the message says how to install it.
    """
    spec = importlib.util.find_spec("g2p_en")  # finds a top-level package without running it
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"the weights of G2P come with the package g2p-en, which is not installed: {_INSTALL}", name="g2p_en")
    return Path(next(iter(spec.submodule_search_locations))) / "checkpoint20.npz"


def arrays(file: Path | None = None) -> dict[str, Array]:
    """The arrays of the checkpoint, by the names and with the shapes of `SHAPES`, all float32. Gates are in the order r, z, n.

    Args:
        file: the checkpoint; None for that of the installed package.

    Raises:
        ModuleNotFoundError: g2p-en is not installed.
        FileNotFoundError: it is, without its checkpoint.
        ValueError: the file is no such checkpoint: an array is missing, of another dtype or shape, or not finite.
    """
    file = file or path()
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; reinstall it: {_INSTALL}")
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            missing = [name for name in SHAPES if name not in archive]
            if missing:
                raise ValueError(f"no array named {', '.join(missing)}")
            found = {name: archive[name] for name in SHAPES}
        for name, shape in SHAPES.items():
            array = found[name]
            if array.dtype != np.float32 or array.shape != shape:
                raise ValueError(f"{name} must be float32{list(shape)}, got {array.dtype}{list(array.shape)}")
            if not np.isfinite(array).all():
                raise ValueError(f"{name} holds NaN or Inf")
    except (ValueError, TypeError, AttributeError, OSError, EOFError, zipfile.BadZipFile) as error:  # what np.load raises on a bad file
        raise ValueError(f"{file} is not the checkpoint of g2p-en: {error}") from error
    return found


def graphemes(word: str) -> list[int]:
    """The table's indices of a word in lower case, `GRAPHEME_UNKNOWN` for what it lacks, and `GRAPHEME_END` at last."""
    return [*(_GRAPHEME_INDEX.get(letter, GRAPHEME_UNKNOWN) for letter in word.lower()), GRAPHEME_END]


def phonemes(tokens: list[int]) -> list[str]:
    """The names of decoded indices up to the first `PHONEME_END`, without it."""
    end = tokens.index(PHONEME_END) if PHONEME_END in tokens else len(tokens)
    return [PHONEMES[token] for token in tokens[:end]]


def phoneme_tokens(names: Iterable[str]) -> list[int]:
    """The table's indices of phonemes by name, and `PHONEME_END` at last.

    Raises:
        ValueError: the table has no phoneme of that name.
    """
    try:
        return [*(_PHONEME_INDEX[name] for name in names), PHONEME_END]
    except KeyError as error:
        raise ValueError(f"there is no phoneme {error.args[0]!r} in the table of ARPAbet") from None
