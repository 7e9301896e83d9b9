"""What the tests of `bench.workers` have done in other processes."""

import os
import time


def call(what, value):
    if what == "crash":
        os.abort()
    if what == "leave":
        os._exit(value)
    if what == "raise":
        raise ValueError(f"not {value}\nand more")
    if what == "hang":
        time.sleep(1000)
    return value if what == "return" else os.environ.get(what)
