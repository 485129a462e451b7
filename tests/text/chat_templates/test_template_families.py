"""Chat templates of our own, each with the constructs that a well-known family uses, rendered as transformers does."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

from gptcli.errors import TemplateError
from gptcli.text.chat_templates.chat_template import ChatTemplate
from gptcli.text.messages import Message, Role
from gptcli.text.tokenizer import Tokenizer
from tests.tiny import make_tokenizer

HOME = Path(__file__).parent / "families"
FAMILIES = """chatml command deepseek deepseek_switched gemma glm gpt_oss granite llama2 llama3 mistral nemotron phi3
qwen3 smollm3 zephyr""".split()
SWITCHED = {name: "enable_thinking" for name in ("glm", "qwen3", "smollm3")}
SWITCHED |= {name: "thinking" for name in ("deepseek_switched", "granite")}
CASES = [(name, None) for name in FAMILIES] + [(name, thinking) for name in SWITCHED for thinking in (True, False)]

CONTROL = """<s> </s> <|end|> <|user|> <|system|> <|assistant|> <|eot_id|> <|start_header_id|> <|end_header_id|> [INST]
[/INST] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] <start_of_turn> <end_of_turn> <｜User｜> <｜Assistant｜> <｜end▁of▁sentence｜>
<|START_OF_TURN_TOKEN|> <|END_OF_TURN_TOKEN|> <|SYSTEM_TOKEN|> <|USER_TOKEN|> <|CHATBOT_TOKEN|> <|start|> <|message|>
<|channel|> <|return|> [gMASK] <sop> <SPECIAL_10> <SPECIAL_11> <SPECIAL_12> <|im_start|> <|im_end|>""".split()

ROLES: dict[str, Role] = {"s": "system", "u": "user", "a": "assistant"}
ORDERS = ["u", "su", "uau", "suau", "suauau", "au", "uu", "ssu", "s", "ua", "sau", "usu"]
TEXTS: dict[Role, list[str]] = {
    "system": ["Be brief.", " Be /no_think brief. \n", ""],
    "user": ["Hi", "  {{ 1 }} <b>&amp;\"' \n", "Ünï 日本 🎉 \\n /no_think", "<tool_response>1</tool_response>", ""],
    "assistant": ["Yes.", "<think>\nhm\n</think>\n\nYes ", " a</think>b", "<think></think>", "<think>c", ""],
}
Turns = tuple[tuple[Role, str], ...]


def conversations() -> Iterator[Turns]:
    """Roles in right and wrong orders, each with several choices of texts."""
    for order in ORDERS:
        for first in range(6):
            roles = [ROLES[letter] for letter in order]
            yield tuple((role, TEXTS[role][(first + at) % len(TEXTS[role])]) for at, role in enumerate(roles))


def replaced(text: str, old: list[str], new: list[str]) -> str:
    for before, after in zip(old, new, strict=True):
        text = text.replace(before, after)
    return text


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer.json with the control tokens of all families."""
    file = tmp_path_factory.mktemp("families") / "tokenizer.json"
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens(CONTROL)
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.save(str(file))
    (file.parent / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": {"content": "</s>"}}')
    return file


@pytest.fixture(scope="module")
def tokenizer(file: Path) -> Tokenizer:
    return Tokenizer.open(file.parent)


@pytest.fixture(scope="module")
def reference(file: Path) -> Any:
    opens: Any = PreTrainedTokenizerFast
    return opens(tokenizer_file=str(file), bos_token="<s>", eos_token="</s>")


@cache
def template(family: str) -> ChatTemplate:
    return ChatTemplate.from_file(HOME / f"{family}.jinja")


@pytest.fixture(scope="module", autouse=True)
def processes_end() -> Iterator[None]:
    """Ends the process that each cached template has."""
    yield
    template.cache_clear()


def ours(family: str, turns: Turns, tokenizer: Tokenizer, thinking: bool | None = None) -> list[int] | None:
    """Token ids, or None where the template refuses the conversation."""
    try:
        return template(family).render([Message(*turn) for turn in turns], tokenizer, thinking=thinking)
    except TemplateError:
        return None


def theirs(family: str, turns: Turns, reference: Any, **options: Any) -> Any:
    """Token ids of transformers (tokenize=False: the text); None where the template refuses or renders nothing."""
    messages = [{"role": role, "content": text} for role, text in turns]
    source = (HOME / f"{family}.jinja").read_text(encoding="utf-8")
    try:
        rendered = reference.apply_chat_template(
            messages, chat_template=source, add_generation_prompt=True, return_dict=False, **options
        )
        return rendered or None
    except jinja2.TemplateError:
        return None


@pytest.mark.parametrize(("family", "thinking"), CASES)
def test_every_conversation_has_the_tokens_that_transformers_gives_it(
    family: str, thinking: bool | None, tokenizer: Tokenizer, reference: Any
) -> None:
    options = {} if thinking is None else {SWITCHED[family]: thinking}
    rendered = 0
    for turns in conversations():
        wanted = theirs(family, turns, reference, **options)
        assert ours(family, turns, tokenizer, thinking) == wanted, turns
        rendered += wanted is not None
    assert rendered >= 30


@pytest.mark.parametrize(
    ("family", "order", "reason"),
    [
        ("llama2", "uu", "Roles must take turns: user/assistant"),
        ("mistral", "uu", "After the system message, roles must take turns"),
        ("gemma", "suu", "Roles must take turns"),
        ("command", "usu", "A system message must come first"),
    ],
)
def test_a_wrong_order_of_roles_is_refused_in_the_templates_own_words(
    family: str, order: str, reason: str, tokenizer: Tokenizer
) -> None:
    with pytest.raises(TemplateError, match=rf"^chat template: .*{family}\.jinja: {reason}"):
        template(family).render([Message(ROLES[letter], "Hi") for letter in order], tokenizer)


@pytest.mark.parametrize("family", FAMILIES)
def test_control_tokens_that_somebody_types_are_text(
    family: str, tokenizer: Tokenizer, reference: Any, file: Path
) -> None:
    # The reference renders stand-ins for what is typed, and encodes with control tokens that have other names.
    standins = [f"@{index}@" for index in range(len(CONTROL))]
    names = [chr(0xE000 + index) for index in range(len(CONTROL))]
    encoder = tokenizers.Tokenizer.from_str(replaced(file.read_text(encoding="utf-8"), CONTROL, names))
    for order in "u", "su", "suau":
        typed = [(ROLES[letter], f"hi {' '.join(standins)}\n{''.join(standins)}x") for letter in order]
        rendered = theirs(family, tuple(typed), reference, tokenize=False)
        text = replaced(replaced(rendered, CONTROL, names), standins, CONTROL)
        turns: Turns = tuple((role, replaced(said, standins, CONTROL)) for role, said in typed)
        assert ours(family, turns, tokenizer) == encoder.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("family", FAMILIES)
def test_the_switch_for_thinking_is_known_where_it_changes_the_prompt(family: str, tokenizer: Tokenizer) -> None:
    asked: Turns = (("user", "Hi"),)
    changes = ours(family, asked, tokenizer, thinking=True) != ours(family, asked, tokenizer, thinking=False)
    assert ("thinking" not in template(family).missing_switches) == changes == (family in SWITCHED)


@pytest.mark.parametrize("effort", ["low", "medium", "high", None])
def test_an_effort_is_asked_for_as_in_transformers(effort: str | None, tokenizer: Tokenizer, reference: Any) -> None:
    asked: Turns = (("user", "Hi"),)
    options = {} if effort is None else {"reasoning_effort": effort}
    rendered = template("gpt_oss").render([Message(*asked[0])], tokenizer, reasoning_effort=effort)
    assert rendered == theirs("gpt_oss", asked, reference, **options)
    assert f"Effort: {effort or 'medium'}".encode() in tokenizer.decode(rendered)
    assert [name for name in FAMILIES if "reasoning_effort" not in template(name).missing_switches] == ["gpt_oss"]


def test_a_template_can_write_todays_date(tokenizer: Tokenizer) -> None:
    before = date.today()
    text = tokenizer.decode(ours("gpt_oss", (("user", "Hi"),), tokenizer) or []).decode()
    assert f"Date: {before}\n" in text or f"Date: {date.today()}\n" in text


IN_PARTS = {
    "all roles": "{% for message in messages %}{{ message.role | capitalize }}: {% for part in message.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% elif part.type == 'image' %}<image>{% endif %}{% endfor %}\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}",
    "by filters": "{% for message in messages %}{{ message.role.upper() ~ ': ' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] ~ ' ' }}"
    "{% endfor %}{% endfor %}",
    "by position": "{% for m in messages %}[{{ m['content'][0]['text'] | trim }}]{% endfor %}",
}


@pytest.mark.parametrize("source", IN_PARTS.values(), ids=IN_PARTS)
def test_a_template_that_drops_texts_because_it_expects_parts_gets_parts(
    source: str, tokenizer: Tokenizer, reference: Any
) -> None:
    said = [("user", "Hi"), ("assistant", "Yes?"), ("user", " <|im_end|> is text")]
    parts = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in said]
    wanted = reference.apply_chat_template(parts, chat_template=source, add_generation_prompt=True, tokenize=False)
    made = ChatTemplate(source, "test")
    messages = [Message(role, text) for role, text in said]
    assert made.render_text(messages, tokenizer) == wanted
    assert tokenizer.decode(made.render(messages, tokenizer)).decode() == wanted
    assert not set(tokenizer.control_tokens.ids.values()) & set(made.render(messages, tokenizer))


@pytest.mark.parametrize(
    "source",
    [
        "{% for message in messages %}{{ message.role }}{% endfor %}",
        "{% for message in messages %}{{ message.content if message.content is not string else '' }}!{% endfor %}",
        "{% for message in messages %}{{ message.content[:0] + '!' }}{% endfor %}",
    ],
    ids=["without texts", "lists as Python spells them", "lists fail"],
)
def test_a_template_that_drops_texts_and_parts_is_refused(source: str, tokenizer: Tokenizer) -> None:
    with pytest.raises(TemplateError, match="leaves out what the user says"):
        ChatTemplate(source, "test").render([Message("user", "Hi")], tokenizer)


def test_a_template_may_change_the_users_words(tokenizer: Tokenizer) -> None:
    source = "{% for message in messages %}{{ message.content | upper }}{% endfor %}"
    ids = ChatTemplate(source, "test").render([Message("user", "Hi")], tokenizer)
    assert tokenizer.decode(ids) == b"HI"
