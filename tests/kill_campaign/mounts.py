"""Commands that run under a file system of their own."""

from __future__ import annotations

import os
import shutil

_FULL_SHARED_MEMORY = """
mount -t tmpfs -o size=4k full /dev/shm
head -c 4096 /dev/zero > /dev/shm/full
if (echo more > /dev/shm/more) 2> /dev/null; then exit 1; fi
exec "$@"
"""


def under_full_shared_memory() -> list[str]:
    """What runs a command where /dev/shm has no byte left; nothing where that needs a right that we lack."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return []
    return ["unshare", "--mount", "--propagation", "private", "sh", "-e", "-c", _FULL_SHARED_MEMORY, "sh"]
