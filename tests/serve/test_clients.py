"""The official clients, unmodified: what they ask is answered, and they understand the answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import anthropic
import numpy as np
import openai
import pytest
from pydantic import BaseModel

from gptcli import LanguageModel
from gptcli.serve.guards import Access
from tests.serve.conftest import Running, serving

MODEL = "smollm2-135m-instruct"
BRIEF = "Be brief."
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def real_server(real: LanguageModel) -> Iterator[Running]:
    with serving(real, access=Access(key="secret")) as running:
        yield running


@pytest.fixture(scope="module")
def keyed(tiny: LanguageModel) -> Iterator[Running]:
    """A server of the tiny model that wants a key."""
    with serving(tiny, access=Access(key="secret")) as running:
        yield running


@pytest.fixture(scope="module")
def client(keyed: Running) -> Iterator[openai.OpenAI]:
    with keyed.openai() as client:
        yield client


@pytest.fixture(scope="module")
def claude(keyed: Running) -> Iterator[anthropic.Anthropic]:
    with keyed.anthropic() as client:
        yield client


@pytest.mark.real
def test_the_default_model_answers_both_clients(real_server: Running) -> None:
    with real_server.openai() as client:
        whole = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=8)
        chunks = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=8, stream=True)
        said = whole.choices[0].message.content
        assert "Paris" in said
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == said

        class Capital(BaseModel):
            city: str

        parsed = client.chat.completions.parse(model=MODEL, messages=QUESTION, response_format=Capital, max_tokens=40)
        assert isinstance(parsed.choices[0].message.parsed, Capital)
        texts = ["The cat sat on the mat.", "A cat is sitting on a mat.", "Interest rates rose by a quarter."]
        cat, other_cat, rates = (each.embedding for each in client.embeddings.create(model=MODEL, input=texts).data)
        assert np.dot(cat, cat) == pytest.approx(1, abs=1e-5)
        assert np.dot(cat, other_cat) > np.dot(cat, rates)
    with real_server.anthropic() as claude:
        begun = [*QUESTION, {"role": "assistant", "content": "The capital of France is"}]
        message = claude.messages.create(model=MODEL, messages=begun, max_tokens=8, stop_sequences=["."])
        assert message.content[0].text.startswith(" Paris")
        assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", ".")


def test_openai_chats_whole_and_streamed(client: openai.OpenAI) -> None:
    asked = {"model": "tiny", "messages": QUESTION, "max_tokens": 9}
    whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    [choice] = whole.choices
    assert len(choice.logprobs.content) == whole.usage.completion_tokens
    *chunks, last = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == choice.message.content
    assert last.usage == whole.usage


def test_openai_completes_in_both_spellings(client: openai.OpenAI, keyed: Running) -> None:
    prompt = "In a small town, people"
    text = client.completions.create(model="tiny", prompt=prompt, max_tokens=8).choices[0].text
    key = {"Authorization": "Bearer secret"}
    first = keyed.post("/v1/engines/tiny/completions", key, prompt=prompt, max_tokens=8)
    assert first.json["choices"][0]["text"] == text


def test_openai_answers_and_goes_on(client: openai.OpenAI) -> None:
    first = client.responses.create(model="tiny", input="I am Ada.", instructions=BRIEF, max_output_tokens=8)
    assert first.status == "incomplete" and first.output_text
    again = client.responses.create(model="tiny", input="Hi", previous_response_id=first.id, max_output_tokens=4)
    assert again.usage.input_tokens > first.usage.input_tokens
    assert client.responses.retrieve(first.id).output_text == first.output_text
    with client.responses.stream(model="tiny", input="I am Ada.", instructions=BRIEF, max_output_tokens=8) as stream:
        events = list(stream)
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].type == "response.incomplete"
    assert "".join(deltas) == events[-1].response.output_text == first.output_text
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)


def test_openai_gets_embeddings(client: openai.OpenAI, tiny: LanguageModel) -> None:
    answer = client.embeddings.create(model="tiny", input=["In a", "small town"])
    for text, each in zip(["In a", "small town"], answer.data, strict=True):
        assert each.embedding == pytest.approx(tiny.embed(text).tolist(), abs=1e-6)
    assert answer.usage.prompt_tokens == sum(len(tiny.tokenizer.encode(text)) for text in ("In a", "small town"))


def test_openai_understands_the_errors(client: openai.OpenAI, keyed: Running) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model="tiny", messages=QUESTION, extra_body={"surprise": 1})
    assert error.value.param == "surprise"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_openai_asks_fifty_times_at_once(keyed: Running) -> None:
    async def ask() -> list[str]:
        url = f"http://127.0.0.1:{keyed.port}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="secret", max_retries=0) as client:
            asked = [client.completions.create(model="tiny", prompt=f"{n} plus", max_tokens=2) for n in range(50)]
            return [answer.choices[0].text for answer in await asyncio.gather(*asked)]

    answers = asyncio.run(ask())
    assert len(answers) == 50 and len(set(answers)) > 1


def test_anthropic_asks_whole_and_streamed(claude: anthropic.Anthropic) -> None:
    asked = {"model": "tiny", "system": BRIEF, "messages": QUESTION}
    whole = claude.messages.create(**asked, max_tokens=12)
    [block] = whole.content
    assert (block.type, whole.stop_reason) in (("text", "max_tokens"), ("text", "end_turn"))
    with claude.messages.stream(**asked, max_tokens=12) as stream:
        assert "".join(stream.text_stream) == block.text
        assert stream.get_final_message().usage == whole.usage
    counted = claude.messages.count_tokens(**asked)
    assert counted.input_tokens == whole.usage.input_tokens


def test_anthropic_understands_the_errors(claude: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="surprise"):
        claude.messages.create(model="tiny", messages=QUESTION, max_tokens=1, extra_body={"surprise": 1})
    with pytest.raises(anthropic.AuthenticationError):
        claude.with_options(api_key="wrong").messages.create(model="tiny", messages=QUESTION, max_tokens=1)
