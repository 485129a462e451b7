from __future__ import annotations

import hashlib
import importlib.util
import itertools
import os
import shutil
from pathlib import Path

import pytest

from gptcli.checkpoint.folder import ModelFolder
from gptcli.errors import ModelNotFound
from gptcli.models import catalog
from gptcli.models.catalog import DEFAULT_MODEL, find, find_named, install_root, local_models, missing_root_notes
from gptcli.models.hub_cache import hub_cache
from gptcli.models.locate import locate
from tests.models.fake_hub import FakeHub
from tests.tiny import make_model


def config_in(directory: Path) -> Path:
    """A directory with a config.json, which is all that makes it a model to the catalog."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    return directory


def user_root(tmp_path: Path) -> Path:
    return tmp_path / "data" / "gptcli" / "models"


def hub_snapshot(tmp_path: Path, name: str, commit: str = "abc", reference: str = "abc\n") -> Path:
    directory = tmp_path / "huggingface" / "hub" / f"models--{name.replace('/', '--')}"
    (directory / "refs").mkdir(parents=True)
    (directory / "refs" / "main").write_text(reference)
    return config_in(directory / "snapshots" / commit)


def test_models_are_looked_for_in_one_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "owner/name"
    assert find(name) is None
    cached, by_path = hub_snapshot(tmp_path, name), config_in(tmp_path / "here" / name)
    for directory in [config_in(root / name) for root in (tmp_path / "weights", user_root(tmp_path))]:
        assert locate(name) == directory
        (directory / "config.json").unlink()
    assert locate(name) == cached
    monkeypatch.chdir(tmp_path / "here")
    assert locate(name).resolve() == by_path


def test_models_are_kept_in_a_checkout_or_the_users_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPTCLI_WEIGHTS")
    assert install_root() == Path(__file__).parents[2] / "weights"
    monkeypatch.setattr(catalog, "__file__", str(tmp_path / "site-packages" / "gptcli" / "models" / "catalog.py"))
    assert install_root() == user_root(tmp_path)


def test_models_of_all_directories_are_listed_once_by_name(tmp_path: Path) -> None:
    ours = config_in(tmp_path / "weights" / "b")
    config_in(user_root(tmp_path) / "b")
    config_in(user_root(tmp_path) / "owner" / "a")
    hub_snapshot(tmp_path, "other/c")
    assert [model.name for model in local_models()] == ["b", "other/c", "owner/a"]
    assert local_models()[0].path == ours


@pytest.mark.parametrize("hidden", [".fetch-x", ".fetch-x/model", "owner/.hidden", ".cache/name"])
def test_hidden_directories_are_never_listed(hidden: str, tmp_path: Path) -> None:
    config_in(tmp_path / "weights" / hidden)
    assert local_models() == []


@pytest.mark.parametrize("reference", ["another commit", "\0\udcff", ""])
def test_without_its_main_revision_a_cached_models_newest_is_found(reference: str, tmp_path: Path) -> None:
    hub_snapshot(tmp_path, "owner/name")
    before = find("owner/name")
    file = tmp_path / "huggingface/hub/models--owner--name/refs/main"
    file.write_bytes(reference.encode(errors="surrogateescape"))
    assert before is not None and find("owner/name") == before
    assert local_models() == [before]


def test_the_hubs_cache_is_where_its_client_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every combination of the variables, as the client's own module reads them when it is imported."""
    variables = {
        "XDG_CACHE_HOME": ["/xdg", "$OTHER/xdg"],
        "HF_HOME": ["~/home", "/home/$OTHER"],
        "HUGGINGFACE_HUB_CACHE": ["/old", "$OTHER/old", "~/old"],
        "HF_HUB_CACHE": ["/new", "~/${OTHER}/new"],
    }
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OTHER", "/other")
    spec = importlib.util.find_spec("huggingface_hub.constants")
    places = set()
    for values in itertools.product(*([None, *values] for values in variables.values())):
        for name, value in zip(variables, values, strict=True):
            monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
        client = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(client)
        assert hub_cache() == Path(client.HF_HUB_CACHE), values
        places.add(hub_cache())
    assert len(places) == 1 + 2 + 2 + 3 + 2


def client_fetches(hub: FakeHub, cache: Path, revision: str) -> Path:
    """A snapshot as the hub's client lays it out."""
    from huggingface_hub import hf_hub_download

    files = [hf_hub_download("owner/tiny", file, revision=revision, cache_dir=cache) for file in hub.files]
    return Path(files[0]).parent


def test_a_model_of_the_hubs_client_is_found(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "huggingface" / "hub"
    fetched = client_fetches(hub, cache, revision=hub.commit)
    assert not (cache / "models--owner--tiny" / "refs").exists()
    assert locate("owner/tiny") == fetched
    assert [model.name for model in local_models()] == ["owner/tiny"]
    assert ModelFolder.open(locate("owner/tiny")).tensors
    client_fetches(hub, cache, revision="main")
    assert (cache / "models--owner--tiny" / "refs" / "main").read_text() == hub.commit
    assert locate("owner/tiny") == fetched


def test_a_snapshot_may_link_to_blobs_that_models_share(hub: FakeHub, tmp_path: Path) -> None:
    """The client moves a blob there and leaves a link to it among the model's own."""
    shared = pytest.importorskip("huggingface_hub.utils._shared_blobs")
    cache = tmp_path / "huggingface" / "hub"
    snapshot = client_fetches(hub, cache, revision="main")
    for blob in list((snapshot.parents[1] / "blobs").iterdir()):
        digest, size = hashlib.sha256(blob.read_bytes()).hexdigest(), blob.stat().st_size
        assert shared.publish_blob_to_shared_store(
            blob_path=str(blob), xet_hash=digest, cache_dir=cache, expected_size=size, replace_existing=False
        )
    weights = (snapshot / "model.safetensors").resolve()
    assert weights.parent == cache / "blobs" / weights.name[:2]
    snapshot.chmod(0o777)  # not as a folder of the user's own
    assert ModelFolder.open(locate("owner/tiny")).tensors


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("owner/name", "run `gptcli models pull owner/name`"),
        (DEFAULT_MODEL, f"run `gptcli models pull {DEFAULT_MODEL}`"),
        ("name", "run `gptcli models` to see which are"),
        ("~/name", "run `gptcli models` to see which are"),
        ("x" * 5000, "run `gptcli models` to see which are"),
    ],
)
def test_a_missing_model_comes_with_a_way_out(name: str, hint: str) -> None:
    with pytest.raises(ModelNotFound, match=f"no such model: {name}") as raised:
        locate(name, offline=True)
    assert raised.value.hint == hint


def test_a_model_knows_its_size_and_record(tmp_path: Path) -> None:
    directory = config_in(tmp_path / "weights" / "name")
    assert local_models()[0].manifest == {}
    (directory / "gptcli.json").write_text('{"source": {"file": "x"}}')
    assert local_models()[0].manifest == {"source": {"file": "x"}}
    assert local_models()[0].size == 2 + 25


@pytest.mark.parametrize("name", ["../victim", "/etc", "a/../b", "a//b", "", ".", "a/b/c", "-x"])
def test_a_path_is_not_a_name(name: str) -> None:
    make_model(install_root() / "a")
    make_model(install_root().parent / "victim")
    assert find_named(name) is None


def test_the_first_of_gptcli_weights_takes_new_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    monkeypatch.setenv("GPTCLI_WEIGHTS", f"{first}{os.pathsep}{second}")
    config_in(second / "mine")
    assert install_root() == first
    assert missing_root_notes() == missing_root_notes("by-name") == [f"GPTCLI_WEIGHTS: there is no directory {first}"]
    assert missing_root_notes(str(tmp_path)) == []
    assert find_named("mine").path == second / "mine"
    assert [model.name for model in local_models()] == ["mine"]


def test_a_path_may_begin_at_home_or_be_a_file_of_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    model = make_model(tmp_path / "mine")
    for name in ("~/mine", "~/mine/model.safetensors", str(model / "model.safetensors")):
        assert find(name).path == model


def test_a_near_name_is_proposed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTCLI_WEIGHTS", str(tmp_path))
    config_in(tmp_path / "smollm2-360m-instruct")
    for name in ("smolm2-360m-instruct", "smollm2", "360M"):
        with pytest.raises(ModelNotFound) as error:
            locate(name)
        assert str(error.value.hint).startswith("did you mean smollm2-360m-instruct?")


def test_a_snapshot_that_is_removed_meanwhile_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = hub_snapshot(tmp_path, "owner/name", reference="gone").parent
    removed = config_in(directory / "removed")
    is_file = os.path.isfile

    def is_file_until_now(path: Path) -> bool:
        found = is_file(path)
        if path.parent == removed and found:
            shutil.rmtree(removed)
        return found

    monkeypatch.setattr(os.path, "isfile", is_file_until_now)
    assert locate("owner/name") == directory / "abc" and not removed.exists()


def test_the_newest_snapshot_with_a_config_is_taken(tmp_path: Path) -> None:
    directory = tmp_path / "huggingface" / "hub" / "models--owner--name"
    for age, commit in enumerate(["first", "latest", "older"]):
        os.utime(config_in(directory / "snapshots" / commit), (1000 - age, 1000 - age + 5 * (commit == "latest")))
    (directory / "snapshots" / "empty").mkdir()
    assert locate("owner/name") == directory / "snapshots" / "latest"


def test_beside_the_main_snapshot_no_other_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main = hub_snapshot(tmp_path, "owner/name")
    monkeypatch.delattr(Path, "glob")
    assert locate("owner/name") == main
