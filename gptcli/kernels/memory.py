"""Memory for the compiled functions. No torch."""

from __future__ import annotations

import ctypes
import mmap


class Memory:
    """`size` bytes of zeros outside Python's heap, page-aligned; untouched pages take no memory.

    address: valid as long as this object lives. view: the same bytes for Python. Raises MemoryError.
    """

    def __init__(self, size: int, *, huge_pages: bool = False) -> None:
        self.size = size
        try:
            if hasattr(mmap, "MAP_ANONYMOUS"):  # mmap's default, shared memory, has no huge pages
                self.view = mmap.mmap(-1, max(1, size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            else:
                self.view = mmap.mmap(-1, max(1, size))
        except OSError as error:
            raise MemoryError from error
        if huge_pages and hasattr(mmap, "MADV_HUGEPAGE"):
            self.view.madvise(mmap.MADV_HUGEPAGE)
        self._first = ctypes.c_char.from_buffer(self.view)
        self.address = ctypes.addressof(self._first)
