"""Words that the tests train on."""

from fusedrnn.training.lexicon import Lexicon

WORDS = {
    "cat": [["K", "AE1", "T"]], "dog": [["D", "AO1", "G"]], "a": [["AH0"], ["EY1"]], "sun": [["S", "AH1", "N"]], "ice": [["AY1", "S"]],
    "bee": [["B", "IY1"]], "key": [["K", "IY1"]], "owl": [["AW1", "L"]], "box": [["B", "AA1", "K", "S"]], "jam": [["JH", "AE1", "M"]],
    "shy": [["SH", "AY1"]], "who": [["HH", "UW1"]], "the": [["DH", "AH0"], ["DH", "IY0"]], "rug": [["R", "AH1", "G"]],
    "tie": [["T", "AY1"]], "egg": [["EH1", "G"]], "zoo": [["Z", "UW1"]], "you": [["Y", "UW1"]], "view": [["V", "Y", "UW1"]],
    "fish": [["F", "IH1", "SH"]],
}  # fmt: skip


def lexicon(train=WORDS, validation=None, held_out=None):
    """The same words on every side, unless told otherwise."""
    return Lexicon(train, WORDS if validation is None else validation, WORDS if held_out is None else held_out)
