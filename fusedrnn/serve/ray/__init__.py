"""More than one machine, by Ray: the HTTP server as a Ray Serve deployment, and files of text decoded through Ray Data.

Importing this does not import Ray; what needs it says how to install it.
"""

from .decoding import decode
from .deployment import app, application

__all__ = ["app", "application", "decode"]
