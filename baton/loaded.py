"""For processes that have started: what is there then stays to the end, and need not be looked at again."""

from __future__ import annotations

import gc


def spare_what_is_loaded() -> None:
    """Takes all objects that exist now out of the garbage collector's hands, but for what is garbage already.

    With torch these are so many that every full collection holds up all threads for a tenth of a second, and those
    at the interpreter's end the process for most of one.
    """
    gc.collect()
    gc.freeze()
