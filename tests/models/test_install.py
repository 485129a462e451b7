from __future__ import annotations

import errno
import json
import multiprocessing
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from gptcli.errors import ModelNotFound, OutputError, UsageError
from gptcli.files import MANIFEST, written_whole
from gptcli.models import install as module
from gptcli.models.catalog import find, install_root, local_models
from gptcli.models.install import changed_files, install, one_at_a_time, remove, scratch
from gptcli.models.pull import import_gguf
from tests.gguf.tiny_gguf import write_gguf
from tests.models.conftest import silent


def put(name: str, text: str = "{}", *, replace: bool = True) -> Path:
    """Installs a model of one file."""
    with scratch() as directory:
        model = directory / "model"
        model.mkdir()
        (model / "config.json").write_text(text)
        return install(model, name, {"file": "a test"}, replace=replace)


def contents(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*"))


def test_a_model_is_installed_with_its_checksums() -> None:
    path = put("owner/name")
    record = json.loads((path / MANIFEST).read_text())
    assert record["source"] == {"file": "a test"}
    assert changed_files(path, record) == []
    (path / "config.json").write_text("[]")
    assert changed_files(path, record) == ["config.json"]
    (path / "config.json").unlink()
    assert changed_files(path, record) == ["config.json"]


def test_a_failure_leaves_no_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "not" / "there"
    monkeypatch.setenv("GPTCLI_WEIGHTS", str(root))
    with pytest.raises(ModelNotFound), one_at_a_time(), scratch():
        raise ModelNotFound("no network")
    assert not root.parent.exists()
    assert put("name").parent == root


@pytest.mark.parametrize("has_links", [True, False])
def test_what_another_process_made_meanwhile_is_not_replaced(
    has_links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_links:
        monkeypatch.setattr(os, "link", Mock(side_effect=PermissionError))
    first = put("name", '{"first": 1}', replace=False)
    with pytest.raises(OutputError, match="another process made it meanwhile"):
        put("name", "{}", replace=False)
    assert (first / "config.json").read_text() == '{"first": 1}'
    with pytest.raises(OutputError, match="another process made it meanwhile"):
        with written_whole(tmp_path / "file", new=True) as draft:
            draft.write_text("second")
            (tmp_path / "file").write_text("first")
    with written_whole(tmp_path / "file 2", new=True) as draft:
        draft.write_text("second")
    assert {each.name: each.read_text() for each in tmp_path.glob("*file*")} == {"file": "first", "file 2": "second"}


def test_a_model_of_the_same_name_is_replaced_whole() -> None:
    first = put("name")
    (first / "extra").write_text("old")
    put("name", '{"new": 1}')
    assert contents(install_root()) == ["name", "name/config.json", f"name/{MANIFEST}"]
    assert (first / "config.json").read_text() == '{"new": 1}'


def test_a_model_that_cannot_be_installed_leaves_the_old_one(monkeypatch: pytest.MonkeyPatch) -> None:
    old = put("name", '{"old": 1}')
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name == "model":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OutputError, match="Input/output error"):
        put("name", '{"new": 1}')
    assert (old / "config.json").read_text() == '{"old": 1}'
    assert contents(install_root()) == ["name", "name/config.json", f"name/{MANIFEST}"]


def test_a_directory_that_is_not_a_model_is_never_replaced() -> None:
    put("owner/name")
    (install_root() / "notes").write_text("mine")
    for name in ("owner", "notes"):
        with pytest.raises(UsageError, match="in the way, and not a model"):
            put(name)
    assert find("owner/name")
    assert (install_root() / "notes").read_text() == "mine"


def test_no_model_is_installed_inside_another() -> None:
    put("outer")
    with pytest.raises(UsageError, match="is a model itself"):
        put("outer/inner")


def install_many(root: str, letter: str) -> None:
    os.environ["GPTCLI_WEIGHTS"] = root
    for _ in range(40):
        put("name", json.dumps({"by": letter}))


def test_processes_may_install_one_model_at_once() -> None:
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=install_many, args=(str(install_root()), letter)) for letter in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0]
    assert contents(install_root()) == ["name", "name/config.json", f"name/{MANIFEST}"]
    assert changed_files(install_root() / "name", json.loads((install_root() / "name" / MANIFEST).read_text())) == []


def test_a_model_is_fetched_once_at_a_time() -> None:
    with scratch("owner/name"):
        with pytest.raises(OutputError, match="another process is fetching"), scratch("owner/name"):
            pass
    with scratch("owner/name"):
        pass


def test_a_named_scratch_directory_survives_a_failure_but_no_success() -> None:
    with pytest.raises(KeyboardInterrupt), scratch("owner/name") as directory:
        (directory / "half").write_text("")
        raise KeyboardInterrupt
    with scratch("owner/name") as directory:
        assert (directory / "half").exists()
    assert contents(install_root()) == []


def test_leftovers_of_a_killed_process_are_removed_after_a_day() -> None:
    old, new = install_root() / ".fetch-old", install_root() / ".fetch-new"
    for directory in (old, new):
        directory.mkdir(parents=True)
        (directory / "half").write_text("")
    two_days_ago = time.time() - 48 * 3600
    os.utime(old, (two_days_ago, two_days_ago))
    with scratch():
        pass
    assert not old.exists() and new.exists()


def test_a_directory_that_cannot_be_written_is_an_output_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GPTCLI_WEIGHTS", str(tmp_path / "file" / "weights"))
    with pytest.raises(OutputError, match="cannot write"), scratch():
        pass


def test_too_little_space_is_an_output_error_with_a_way_out() -> None:
    with scratch(), pytest.raises(OutputError, match="MB are needed") as raised:
        module.need_space(1 << 60)
    assert raised.value.hint and "GPTCLI_WEIGHTS" in raised.value.hint


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file system of 64 kB that passes the check for space. Only the superuser can make one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("cannot mount a file system")
    monkeypatch.setenv("GPTCLI_WEIGHTS", str(disk))
    monkeypatch.setattr(module, "need_space", lambda size: None)
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_disk_that_fills_up_is_an_error_and_is_left_clean(small_disk: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No space left on device"):
        import_gguf(write_gguf(tmp_path / "a.gguf"), "mine", silent)
    assert contents(small_disk) == []


def test_rm_removes_a_model_and_its_empty_owner() -> None:
    put("owner/one")
    put("owner/two")
    assert remove("owner/one") == install_root() / "owner/one"
    assert [model.name for model in local_models()] == ["owner/two"]
    remove("owner/two")
    assert contents(install_root()) == []


def test_rm_removes_only_what_was_installed(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put("owner/name")
    by_hand = install_root() / "by-hand"
    by_hand.mkdir()
    (by_hand / "config.json").write_text("{}")
    monkeypatch.chdir(install_root())
    with pytest.raises(UsageError, match="not installed by gptcli"):
        remove("by-hand")
    for name in ("owner", ".", "owner/../by-hand", str(tiny_model), "../weights"):
        with pytest.raises((UsageError, ModelNotFound)):
            remove(name)
    assert len(local_models()) == 2 and tiny_model.exists()


def test_scratch_directories_are_not_listed_as_models() -> None:
    with scratch() as directory:
        (directory / "config.json").write_text("{}")
        assert local_models() == []
