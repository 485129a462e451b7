"""Memory that the compiled functions read and write. No torch."""

from __future__ import annotations

import ctypes
import mmap


class Memory:
    """So many bytes of zeros outside Python's heap, page-aligned; what is not touched takes no memory.

    address: where they are, as long as this object is there. view: the same for Python. Raises MemoryError.
    """

    def __init__(self, size: int, *, huge_pages: bool = False) -> None:
        self.size = size
        try:
            if hasattr(mmap, "MAP_ANONYMOUS"):  # shared memory, which mmap gives by default, has no huge pages
                self.view = mmap.mmap(-1, max(1, size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            else:
                self.view = mmap.mmap(-1, max(1, size))
        except OSError as error:
            raise MemoryError from error
        if huge_pages and hasattr(mmap, "MADV_HUGEPAGE"):
            self.view.madvise(mmap.MADV_HUGEPAGE)
        self._first = ctypes.c_char.from_buffer(self.view)
        self.address = ctypes.addressof(self._first)
