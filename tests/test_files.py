"""Files that are written whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gptcli.files import written_whole


def test_a_file_has_the_mode_that_the_umask_gives_though_windows_lacks_fchmod(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "fchmod", raising=False)
    before = os.umask(0o027)
    try:
        with written_whole(tmp_path / "file") as draft:
            draft.write_text("whole")
    finally:
        os.umask(before)
    assert (tmp_path / "file").read_text() == "whole"
    assert os.name != "posix" or (tmp_path / "file").stat().st_mode & 0o777 == 0o640
