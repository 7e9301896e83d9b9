"""What a program depends on. In: a cell and a loop_fn; out: a key under which a captured program may be used again, and the tensors to use.

Everything that the code can see is in the key, except the tensors' values and sizes. `walk` finds it, a `Snapshot` tells what tracing
changed of it and puts it back, and a `Binder` finds the tensors of one loop again and again.
"""

from .binder import Binder
from .record import Walk
from .snapshot import Snapshot
from .walker import walk

__all__ = ["Binder", "Snapshot", "Walk", "walk"]
