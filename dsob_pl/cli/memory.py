"""How the process deals with freed memory."""

from __future__ import annotations

import ctypes
import os
import platform

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Has glibc keep freed blocks instead of giving them back; False with another allocator or a setting of the user's.

    By default a block of some megabytes comes fresh from the kernel, page by page, at every operation that needs one.
    With many seeds or wide networks that was measured to take a fifth of an update.
    """
    if platform.libc_ver()[0] != "glibc" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_MMAP_THRESHOLD, 2**30), (_TRIM_THRESHOLD, _LARGEST), (_TOP_PAD, 2**26))
    return all(mallopt(name, value) for name, value in settings)
