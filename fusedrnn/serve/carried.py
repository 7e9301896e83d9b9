"""A session's state in its client's hands. In: the state of a model; out: a text that any process with the model can go on from.

The text is base64 of a version, the model's fingerprint, the float32 numbers (little-endian) and an HMAC-SHA256 over all of these.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

import numpy as np
import numpy.typing as npt
from torch import nn

Array = npt.NDArray[np.float32]
_MAGIC, _VERSION = b"frnn", 1
_FINGERPRINT, _MAC = 16, hashlib.sha256().digest_size
_HEAD = len(_MAGIC) + 1 + _FINGERPRINT


def fingerprint(model: nn.Module) -> bytes:
    """16 bytes that models share only if they have the same form and the same parameters, bit for bit."""
    digest = hashlib.sha256(repr(model).encode())
    for name, tensor in sorted(model.state_dict().items()):
        array = tensor.detach().cpu().contiguous().numpy()
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.digest()[:_FINGERPRINT]


class Carried:
    """States of one model, sealed for those that carry them.

    Args:
        model: whose states these are.
        shape: of a state.
        key: that all processes share which are to go on with each other's states; what was sealed with another one is refused. None: no
            key, so that anyone can make a state. What is checked then is that it came whole, and from this model: enough, as a state is
            read by its own stream only.

    Raises:
        ValueError: the key has fewer than 16 bytes.
    """

    def __init__(self, model: nn.Module, shape: tuple[int, ...], key: bytes | None = None) -> None:
        if key is not None and len(key) < 16:
            raise ValueError(f"the key of sessions must have 16 bytes or more, got {len(key)}")
        self._shape, self._key = shape, key or b""
        self._head = _MAGIC + bytes([_VERSION]) + fingerprint(model)
        self._numbers = 4 * int(np.prod(shape))

    @property
    def size(self) -> int:
        """Characters of a sealed state."""
        return -(-(_HEAD + self._numbers + _MAC) // 3) * 4

    def seal(self, state: Array) -> str:
        """A state ``[*shape]`` as text."""
        content = self._head + np.ascontiguousarray(state, "<f4").tobytes()
        return base64.urlsafe_b64encode(content + self._mac(content)).decode()

    def open(self, text: str) -> Array:
        """The state ``[*shape]`` in a text.

        Raises:
            ValueError: the text holds none, or one of another version, model or key, or has been changed.
        """
        if len(text) > self.size + 4096:  # nothing is made of what is far too long
            raise ValueError(f"a state has {self.size} characters here, this one has {len(text)}")
        try:
            content = base64.b64decode(text.encode("ascii"), b"-_", validate=True)
        except (UnicodeEncodeError, binascii.Error):
            raise ValueError("the state cannot be read: send it as it came, or none to begin a stream") from None
        if content[: len(_MAGIC)] != _MAGIC or len(content) < _HEAD + _MAC:
            raise ValueError("the state cannot be read: send it as it came, or none to begin a stream")
        if content[len(_MAGIC)] != _VERSION:
            raise ValueError(f"the state is of version {content[len(_MAGIC)]}, this server has {_VERSION}: begin the stream again")
        if content[:_HEAD] != self._head:
            raise ValueError("the state is of another model, or of other weights: begin the stream again")
        if len(content) != _HEAD + self._numbers + _MAC or not hmac.compare_digest(content[-_MAC:], self._mac(content[:-_MAC])):
            raise ValueError("the state has been changed on its way, or was sealed with another key: begin the stream again")
        return np.frombuffer(content[_HEAD:-_MAC], "<f4").astype(np.float32).reshape(self._shape)

    def _mac(self, content: bytes) -> bytes:
        return hmac.digest(self._key, content, "sha256")
