"""``python -m fusedrnn`` is the command ``fusedrnn``."""

import sys

from .cli import main

sys.exit(main())
