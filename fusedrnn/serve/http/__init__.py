"""Engines behind HTTP: the Open Inference Protocol, generation with server-sent events, and OpenAI's completions, as an ASGI app."""

from .app import application
from .faces import CharactersFace, Face, G2PFace, RecogniserFace, TensorSpec, face
from .limits import Limits
from .problems import Problem
from .server import Certificate, listener, serve

__all__ = [
    "Certificate", "CharactersFace", "Face", "G2PFace", "Limits", "Problem", "RecogniserFace", "TensorSpec", "application", "face",
    "listener", "serve",
]  # fmt: skip
