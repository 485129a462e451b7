"""The user's private state directory, and files there that grow by whole lines."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import platformdirs

from gptcli.errors import OutputError
from gptcli.files import lock


def state_path() -> Path:
    """The path of the directory of history and sessions, which need not exist."""
    return Path(platformdirs.user_state_dir("gptcli", appauthor=False))


def state_directory() -> Path:
    """The directory of history and sessions, made if need be, private to its owner. Raises OutputError."""
    directory = state_path()
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = directory.lstat()
        if not stat.S_ISDIR(status.st_mode):
            raise OutputError(f"cannot write: {directory}: not a directory, or a link to one")
        if hasattr(os, "getuid") and status.st_uid != os.getuid():
            raise OutputError(f"cannot write: {directory}: it is somebody else's")
        if stat.S_IMODE(status.st_mode) & 0o077:
            directory.chmod(0o700)
    except OSError as error:
        raise OutputError(f"cannot write: {directory}: {error.strerror}") from None
    return directory


class AppendOnlyFile:
    """A private file that grows by whole lines. Lines that could not be written are tried again with the next.

    problem: why the last write failed; None if everything is written.
    """

    def __init__(self, path: Path) -> None:
        """Opens a regular file, or creates one. Raises OSError."""
        self.problem: OSError | None = None
        self._pending: list[bytes] = []
        flags = ["O_RDWR", "O_CREAT", "O_APPEND", "O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"]
        self._descriptor = os.open(path, sum(getattr(os, flag, 0) for flag in flags), 0o600)
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            os.close(self._descriptor)
            raise OSError(0, "not a regular file")

    def try_lock(self) -> bool:
        """Locks the file until it is closed; False if another process has locked it."""
        return lock(self._descriptor)

    def is_at(self, path: Path) -> bool:
        """Whether this is still the file at a path, neither removed nor renamed."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), path.lstat())
        except FileNotFoundError:
            return False

    def read(self) -> bytes:
        """The file's whole content."""
        with open(os.dup(self._descriptor), "rb") as file:
            file.seek(0)
            return file.read()

    def truncate(self, size: int) -> None:
        """Cuts the file to this many bytes. Raises OSError."""
        os.ftruncate(self._descriptor, size)

    def append(self, line: bytes) -> None:
        """Writes a line, given without its newline, whole or not at all."""
        self._pending.append(line + b"\n")
        self._write()

    def sync(self) -> None:
        """Writes pending lines, and waits until all of the file is on disk."""
        self._write()
        if self.problem is None:
            try:
                os.fsync(self._descriptor)
            except OSError as error:
                self.problem = error

    def close(self) -> None:
        """Closes the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _write(self) -> None:
        self.problem = None
        while self._pending and self.problem is None:
            line = self._pending[0]
            try:
                before = os.fstat(self._descriptor).st_size
                if os.write(self._descriptor, line) < len(line):
                    self.truncate(before)
                    raise OSError(0, "the disk is full")
                del self._pending[0]
            except OSError as error:
                self.problem = error
