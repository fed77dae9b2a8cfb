"""How a worker's C library handles memory that kernels give back."""

import ctypes
import functools
import platform

# Parameters of mallopt(3), from malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8


@functools.cache
def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next allocation instead of returning it to the kernel.

    NumPy's temporary arrays are a few megabytes each, and fresh pages for each of them took a
    third of the system time at 50,000,000 rows. Peak memory is no higher, as the next table needs
    what the last one has freed. Nothing is done under another C library.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most that glibc takes
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)
        mallopt(_M_ARENA_MAX, 1)
