"""Several threads use one model at once: each text is what it is with one thread."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import gptcli
from gptcli import LanguageModel
from gptcli.runtime import device_plan
from gptcli.runtime.engine import Workload
from gptcli.settings import RuntimeConfig
from gptcli.text.sandbox.client import SandboxClient
from tests.generation.outcomes import completed
from tests.parity.test_families import needed_library
from tests.tiny import make_model

GREEDY = {"temperature": 0.0, "ignore_eos": True}
PROMPTS = ["In a small town", "12 bells", "The clockmaker had 3 clocks, and 12", "there lived"]


@pytest.fixture(scope="module", params=["kernels", "torch", "a snapshot", "a draft model"])
def lm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LanguageModel]:
    root = tmp_path_factory.mktemp("threads")
    path = make_model(root / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root))
        if request.param == "torch":
            patch.setattr(device_plan, "kernels", lambda: None)
        else:
            needed_library()
        if request.param == "a snapshot":
            runtime, workload = RuntimeConfig(device="cpu", dtype="fp32"), Workload()
            with LanguageModel.open(str(path), runtime, workload=workload) as first:
                first.full_engine()
            opened = LanguageModel.open(str(path), runtime, workload=workload)
            assert type(opened.load()).__name__ == "SnapshotEngine"
            yield opened
            return
        draft = make_model(root / "draft", seed=1) if request.param == "a draft model" else None
        yield gptcli.load(path, device="cpu", dtype="fp32", draft_model=draft, speculate=4 if draft else 0)


def ids_of(lm: LanguageModel, prompt: str) -> tuple[int, ...]:
    return completed(lm.generate(prompt, max_tokens=16, **GREEDY))[1].ids


@pytest.mark.parametrize("threads", [2, 8])
def test_threads_that_share_a_model_get_their_own_texts(lm: LanguageModel, threads: int) -> None:
    wanted = [ids_of(lm, prompt) for prompt in PROMPTS]
    begun = []

    def work(index: int) -> list[tuple[int, ...]]:
        abandoned = lm.generate(PROMPTS[index % 4], **GREEDY)
        next(abandoned)
        begun.append(abandoned)  # it stays half-way, and holds up nobody
        return [ids_of(lm, prompt) for prompt in PROMPTS]

    with ThreadPoolExecutor(threads) as pool:
        assert list(pool.map(work, range(threads))) == [wanted] * threads
    assert len(begun) == threads


def test_threads_that_load_a_model_load_it_once(tiny_model: Path) -> None:
    opened = LanguageModel.open(str(tiny_model), RuntimeConfig(device="cpu"))
    with ThreadPoolExecutor(4) as pool:
        engines = list(pool.map(lambda _: opened.load(), range(4)))
    assert len(set(map(id, engines))) == 1


def test_threads_that_ask_a_sandbox_get_their_own_answers() -> None:
    source = "{{ messages[0].content }}" * 50
    client = SandboxClient("template", json.dumps(source).encode())
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda n: client.ask({"messages": [{"content": f"<{n}>"}]}), range(40)))
    assert answers == [f"<{n}>" * 50 for n in range(40)]
