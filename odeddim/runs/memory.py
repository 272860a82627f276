"""Memory that is given back and asked for again, at each evaluation of a network on a CPU."""

from __future__ import annotations

import contextlib
import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt, in malloc.h


def keep_memory() -> None:
    """Let the C library of Linux keep the memory that tensors have given back, for the next ones.

    It would return it to the system, which clears it before it gives it out again: in evaluations of 64 images by the
    built-in model that was 20% of the time. Settings of the environment (MALLOC_..., GLIBC_TUNABLES) and other systems
    are left alone. It holds for the whole process, and for its later jobs.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, 32 << 20)  # the largest that it takes
        mallopt(_TRIM_THRESHOLD, 512 << 20)
