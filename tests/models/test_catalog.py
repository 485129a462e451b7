from __future__ import annotations

from pathlib import Path

import pytest

from gptcli.errors import ModelNotFound
from gptcli.models.catalog import DEFAULT_MODEL, find, find_named, install_root, local_models
from gptcli.models.locate import locate
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


def test_a_path_comes_first_then_gptcli_weights_then_the_users_data_then_the_hubs_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "owner/name"
    assert find(name) is None
    found_in = [
        hub_snapshot(tmp_path, name),
        config_in(user_root(tmp_path) / name),
        config_in(tmp_path / "weights" / name),
    ]
    by_path = config_in(tmp_path / "here" / name)
    assert locate(name) == found_in[2]
    (found_in[2] / "config.json").unlink()
    assert locate(name) == found_in[1]
    (found_in[1] / "config.json").unlink()
    assert locate(name) == found_in[0]
    monkeypatch.chdir(tmp_path / "here")
    assert locate(name).resolve() == by_path


def test_a_checkout_keeps_its_models_in_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPTCLI_WEIGHTS")
    assert install_root() == Path(__file__).parents[2] / "weights"


def test_an_installed_gptcli_keeps_them_in_the_users_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gptcli.models import catalog

    monkeypatch.delenv("GPTCLI_WEIGHTS")
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


def test_a_directory_inside_a_model_is_not_another_model(tmp_path: Path) -> None:
    model = config_in(tmp_path / "weights" / "name")
    config_in(model / "original")
    assert [found.name for found in local_models()] == ["name"]


def test_without_directories_there_are_no_models() -> None:
    assert not install_root().exists()
    assert local_models() == []


@pytest.mark.parametrize("reference", ["another commit", "\0\udcff", ""])
def test_a_cached_model_whose_main_revision_is_not_there_is_not_found(reference: str, tmp_path: Path) -> None:
    hub_snapshot(tmp_path, "owner/name")
    file = tmp_path / "huggingface/hub/models--owner--name/refs/main"
    file.write_bytes(reference.encode(errors="surrogateescape"))
    assert find("owner/name") is None
    assert local_models() == []


def test_the_hubs_cache_is_where_its_client_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = hub_snapshot(tmp_path, "owner/name")
    monkeypatch.delenv("HF_HOME")
    assert find("owner/name") is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert locate("owner/name") == snapshot
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "huggingface" / "hub"))
    assert locate("owner/name") == snapshot


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("owner/name", "run `gptcli models pull owner/name`"),
        (DEFAULT_MODEL, f"run `gptcli models pull {DEFAULT_MODEL}`"),
        ("name", "run `gptcli models` to see which are"),
        ("x" * 5000, "run `gptcli models` to see which are"),
    ],
)
def test_a_missing_model_comes_with_a_way_out(name: str, hint: str) -> None:
    with pytest.raises(ModelNotFound, match=f"no such model: {name}") as raised:
        locate(name, offline=True)
    assert raised.value.hint == hint


def test_a_model_knows_its_size_and_record(tmp_path: Path) -> None:
    directory = config_in(tmp_path / "weights" / "name")
    assert local_models()[0].record == {}
    (directory / "gptcli.json").write_text('{"source": {"file": "x"}}')
    assert local_models()[0].record == {"source": {"file": "x"}}
    assert local_models()[0].size == 2 + 25


@pytest.mark.parametrize("name", ["../victim", "/etc", "a/../b", "a//b", "", ".", "a/b/c", "-x"])
def test_a_path_is_not_a_name(name: str) -> None:
    make_model(install_root() / "a")
    make_model(install_root().parent / "victim")
    assert find_named(name) is None
