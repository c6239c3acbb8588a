"""What makes training on CPU cores bearable."""

from __future__ import annotations

import ctypes
import sys

# Option numbers of glibc's mallopt(3), from <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory instead of returning every large tensor to the kernel.

    By default each tensor above 32 MiB is mapped and unmapped anew, and a third of the run is page
    faults. Elsewhere than on glibc this does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
