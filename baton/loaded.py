"""For processes that start: what they load stays to the end, and the garbage collector need not look at it."""

from __future__ import annotations

import gc


def load_uncollected() -> None:
    """Lets the collector rest until `spare_what_is_loaded`: it would look at all that is loaded again and again,
    for a sixth of the time that importing torch takes."""
    gc.disable()


def spare_what_is_loaded() -> None:
    """Takes all objects that exist now out of the garbage collector's hands, but for what is garbage already.

    With torch these are so many that every full collection holds up all threads for a tenth of a second, and those
    at the interpreter's end the process for most of one.
    """
    gc.collect()
    gc.freeze()
    gc.enable()
