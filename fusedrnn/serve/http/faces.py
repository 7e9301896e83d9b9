"""Models as HTTP clients see them. In: tensors, text and parameters; out: requests to an engine, and its chunks as tensors and text."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..carried import Carried
from ..characters import CharactersModel, Continuation
from ..engine import Engine
from ..g2p import G2PModel
from ..recogniser import Left, Piece, RecogniserModel
from .problems import Problem
from .tensors import Array, datatype, of_strings, strings

Parameters = Mapping[str, Any]


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that a model takes or gives.

    Attributes:
        name: of it.
        datatype: of the Open Inference Protocol.
        shape: -1 where any size will do.
        optional: it may be left out.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False

    def as_dict(self) -> dict[str, Any]:
        """As the protocol's metadata has it."""
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}


class Face(ABC):
    """An engine as HTTP clients see it. A model of your own needs a subclass to be served so.

    Args:
        engine: made, not started: the application does that.

    Attributes:
        inputs, outputs: of ``infer``.
        parameters: names of what a request may say besides.
        generates: whether it has text for ``generate``.
    """

    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    parameters: Sequence[str] = ()
    generates = True

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @property
    def name(self) -> str:
        """In addresses."""
        return self.engine.model.name

    @abstractmethod
    def rows(self, inputs: Mapping[str, Array], parameters: Parameters) -> list[Any]:
        """The engine's requests for an inference: of the inputs, which are as `inputs` says, and parameters, whose names are known.

        Raises:
            TypeError, ValueError, Problem: they make no request.
        """

    @abstractmethod
    def tensors(self, answers: Sequence[Sequence[Any]]) -> dict[str, Array]:
        """The outputs, of the chunks of each row."""

    def row(self, text: str, parameters: Parameters) -> Any:
        """The engine's request to ``generate`` from a text. Errors as of `rows`."""
        raise Problem(404, f"the model {self.name!r} does not generate text: use infer")

    def text(self, chunk: Any, first: bool) -> str:
        """A chunk's part of the text; ``first``: nothing came before it."""
        raise NotImplementedError

    def known(self, parameters: Parameters) -> Parameters:
        """The parameters, if they have names that the model knows.

        Raises:
            Problem: one has not.
        """
        if unknown := [name for name in parameters if name not in self.parameters]:
            there = ", ".join(map(repr, self.parameters)) or "none"
            raise Problem(422, f"parameters: {unknown[0]!r} is not known to the model {self.name!r}; known: {there}")
        return parameters

    def checked(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """The inputs, if they are as `inputs` says.

        Raises:
            Problem: they are not.
        """
        specs = {spec.name: spec for spec in self.inputs}
        for name, array in inputs.items():
            if name not in specs:
                raise Problem(422, f"inputs: {name!r} is not known to the model {self.name!r}; known: {', '.join(map(repr, specs))}")
            spec = specs[name]
            if datatype(array) != spec.datatype:
                raise Problem(422, f"input {name!r} must be {spec.datatype}, got {datatype(array)}")
            fits = len(array.shape) == len(spec.shape) and all(
                want in (-1, size) for want, size in zip(spec.shape, array.shape, strict=True)
            )  # fmt: skip
            if not fits:
                raise Problem(422, f"input {name!r} must have shape {list(spec.shape)} (-1: any), got {list(array.shape)}")
        if missing := [name for name, spec in specs.items() if name not in inputs and not spec.optional]:
            raise Problem(422, f"inputs: {missing[0]!r} is missing")
        return inputs


class G2PFace(Face):
    """Words and their phonemes, with spaces between them."""

    inputs = (TensorSpec("words", "BYTES", (-1,)),)
    outputs = (TensorSpec("phonemes", "BYTES", (-1,)),)

    def rows(self, inputs: Mapping[str, Array], parameters: Parameters) -> list[Any]:
        return list(strings(inputs["words"], "words"))

    def tensors(self, answers: Sequence[Sequence[Any]]) -> dict[str, Array]:
        return {"phonemes": of_strings([" ".join(name for chunk in chunks for name in chunk) for chunks in answers])}

    def row(self, text: str, parameters: Parameters) -> Any:
        return text

    def text(self, chunk: Any, first: bool) -> str:
        return ("" if first else " ") + " ".join(chunk)


class CharactersFace(Face):
    """Prompts and how they go on.

    Attributes:
        most: characters that a request may ask for.
    """

    inputs = (TensorSpec("prompt", "BYTES", (-1,)),)
    outputs = (TensorSpec("text", "BYTES", (-1,)),)
    parameters = ("max_tokens", "temperature", "top_k", "seed", "one_word")

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        if not isinstance(engine.model, CharactersModel):
            raise TypeError(f"engine must serve a CharactersModel, it serves {type(engine.model).__name__}")
        self.most = engine.model.most

    def rows(self, inputs: Mapping[str, Array], parameters: Parameters) -> list[Any]:
        return [self.row(prompt, parameters) for prompt in strings(inputs["prompt"], "prompt")]

    def tensors(self, answers: Sequence[Sequence[Any]]) -> dict[str, Array]:
        return {"text": of_strings(["".join(chunks) for chunks in answers])}

    def row(self, text: str, parameters: Parameters) -> Continuation:
        """Without a seed, every request draws differently."""
        most = parameters.get("max_tokens", 1)  # its name here is not the model's
        if isinstance(most, bool) or not isinstance(most, int) or not 1 <= most <= self.most:
            raise Problem(422, f"max_tokens must be a whole number from 1 to {self.most}, got {most!r:.40}")
        given: dict[str, Any] = {"most" if name == "max_tokens" else name: value for name, value in parameters.items()}
        given.setdefault("seed", secrets.randbits(63))
        heat = given.get("temperature")
        if isinstance(heat, int) and abs(heat) > 2**63:
            raise Problem(422, "temperature must be a number that a float can hold")
        return Continuation(text, **given)

    def text(self, chunk: Any, first: bool) -> str:
        return str(chunk)


class RecogniserFace(Face):
    """Frames of one stream and what they are; the state goes back and forth, so that any server that has the model can go on with it.

    To clients the state is a text, of which they need know nothing: `fusedrnn.serve.carried` says what is in it.

    Args:
        engine: made, not started.
        key: as `Carried` has it.
    """

    generates = False

    def __init__(self, engine: Engine, *, key: bytes | None = None) -> None:
        super().__init__(engine)
        if not isinstance(engine.model, RecogniserModel):
            raise TypeError(f"engine must serve a RecogniserModel, it serves {type(engine.model).__name__}")
        model = engine.model.model
        self._carried = Carried(model, (model.cell.hidden_size,), key)
        self.inputs = (TensorSpec("frames", "FP32", (-1, model.features)), TensorSpec("state", "BYTES", (1,), optional=True))
        self.outputs = (TensorSpec("probabilities", "FP32", (-1, model.classes)), TensorSpec("state", "BYTES", (1,)))
        self._classes = model.classes

    def rows(self, inputs: Mapping[str, Array], parameters: Parameters) -> list[Any]:
        state = None
        if "state" in inputs:
            (text,) = strings(inputs["state"], "state")
            state = self._carried.open(text)
        return [Piece(inputs["frames"].astype(np.float32), state)]

    def tensors(self, answers: Sequence[Sequence[Any]]) -> dict[str, Array]:
        (chunks,) = answers
        seen = [chunk for chunk in chunks if not isinstance(chunk, Left)]
        (left,) = (chunk for chunk in chunks if isinstance(chunk, Left))
        none = np.zeros((0, self._classes), np.float32)
        return {"probabilities": np.concatenate([none, *seen]), "state": of_strings([self._carried.seal(left.state)])}


def face(engine: Engine, *, key: bytes | None = None) -> Face:
    """The face of an engine that serves one of the models that come with fusedrnn; ``key``: of sessions, as `Carried` has it.

    Raises:
        TypeError: it serves another one.
    """
    if isinstance(engine.model, RecogniserModel):
        return RecogniserFace(engine, key=key)
    for model, kind in ((G2PModel, G2PFace), (CharactersModel, CharactersFace)):
        if isinstance(engine.model, model):
            return kind(engine)
    raise TypeError(f"there is no face for a {type(engine.model).__name__}: write a subclass of fusedrnn.serve.http.Face and give that")
