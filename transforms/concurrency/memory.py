"""Settings of a worker's memory: freed memory is kept, and garbage is collected rarely."""

import ctypes
import functools
import gc
import platform

import pyarrow as pa

# Parameters of mallopt(3), from malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8


@functools.cache
def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next allocation instead of returning it to the kernel.

    NumPy's temporary arrays are a few megabytes each, and new pages for each of them took a third
    of the system time at 50,000,000 rows. Peak memory is no higher, since the next table uses what
    the last one has freed. With another C library this does nothing.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most that glibc takes
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)
        mallopt(_M_ARENA_MAX, 1)
        pa.set_memory_pool(pa.system_memory_pool())


@functools.cache
def collect_garbage_rarely() -> None:
    """Make the interpreter search for cycles after every 100,000 new objects instead of 700.

    Rules written per component make millions of objects that live until their shard is written, and
    searching these repeatedly took 40% of the time of such a shard.
    """
    gc.set_threshold(100_000, 20, 20)
