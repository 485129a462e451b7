"""Several models behind one server: requests name them, they load on demand, and leave where memory is short."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gptcli import LanguageModel
from gptcli.errors import OutOfMemory
from gptcli.serve.served_models import ServedModels
from gptcli.settings import RuntimeConfig
from tests.cli.conftest import Cli
from tests.serve.conftest import TEXT, Running, prompting, serving
from tests.tiny import make_model

FP32 = RuntimeConfig(device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return LanguageModel.open(str(make_model(tmp_path_factory.mktemp("models") / "other", seed=1)), FP32)


@pytest.fixture(scope="module")
def two(tiny: LanguageModel, other: LanguageModel) -> Iterator[Running]:
    with serving(tiny, other) as running:
        yield running


def test_a_request_is_answered_by_the_model_it_names(two: Running, tiny: LanguageModel, other: LanguageModel) -> None:
    said = {}
    for lm in (tiny, other, tiny):
        name = lm.folder.path.name
        answer = two.post(TEXT, model=name, prompt="In a small town", max_tokens=6).json
        *deltas, _ = lm.generate("In a small town", max_tokens=6, temperature=0.0)
        said[name] = answer["choices"][0]["text"]
        assert (answer["model"], said[name]) == (name, "".join(delta.text for delta in deltas))
    assert said["tiny"] != said["other"]
    assert [model["id"] for model in two.ask("GET", "/v1/models").json["data"]] == ["tiny", "other"]


def test_the_first_answers_who_names_none_and_an_unknown_name_is_an_error(two: Running) -> None:
    assert two.post(TEXT, prompt="a", max_tokens=1).json["model"] == "tiny"
    answer = two.post(TEXT, model="third", prompt="a")
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")
    assert "tiny, other" in answer.error["message"]


def test_the_model_unused_longest_leaves_when_memory_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = list[str]()
    load = LanguageModel.load

    def limited(lm: LanguageModel, *given: object) -> object:
        if not lm.is_loaded and sum(opened.lm.is_loaded for opened in models._opened.values()) == 2:
            raise OutOfMemory("two are all that fit")
        loaded.append(lm.folder.path.name)
        return load(lm, *given)

    monkeypatch.setattr(LanguageModel, "load", limited)
    paths = {name: str(make_model(tmp_path / name)) for name in "abc"}
    openers = {name: lambda path=path: prompting(LanguageModel.open(path, FP32), {}) for name, path in paths.items()}
    notes = list[str]()
    models = ServedModels(openers, notes.append)
    for name in "abacb":
        models.loaded(name)
    assert loaded == ["a", "b", "a", "c", "b"]
    assert notes == ["b leaves the memory for c", "a leaves the memory for b"]


def test_models_that_requests_could_not_tell_apart_are_refused(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    result = cli("serve", "-m", tiny_model, "-m", make_model(tmp_path / "tiny"))
    result.fails(2, "could not tell these models apart")
