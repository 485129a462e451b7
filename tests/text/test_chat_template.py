from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from gptcli import LanguageModel
from gptcli.errors import InputError, TemplateError
from gptcli.text.chat_template import ChatTemplate
from gptcli.text.messages import Message
from gptcli.text.tokenizer import Tokenizer
from tests.tiny import TEMPLATE, make_model

CHAT = [
    Message("system", "Be brief. "),
    Message("user", "Hi {{ 1 }}"),
    Message("assistant", " Yes?"),
    Message("user", "Ü <b>"),
]
TEMPLATES = {
    "chatml": TEMPLATE,
    "trimmed": "{%- for m in messages -%}\n  <|im_start|>{{ m.role }}: {{ m.content | trim }}\n{% endfor %}",
    "header": "{{ bos_token }}{% for m in messages %}"
    "{% set c = '[' + m['role'] + ']\\n' + m['content'] | trim + eos_token %}"
    "{% if loop.index0 == 0 %}{% set c = bos_token + c %}{% endif %}{{ c }}{% endfor %}",
    "json": "{{ messages | tojson }}|{{ messages[0] | tojson(indent=2) }}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}"
    "{% if m.role == 'assistant' %}{% continue %}{% endif %}"
    "{% set ns.n = ns.n + 1 %}{{ ns.n ~ m.content }}{% endfor %}",
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}",
    "macro": "{% macro turn(m) %}<{{ m.role|upper }}>{{ m.content }}{% endmacro %}"
    "{% for m in messages %}{{ turn(m) }}{% endfor %}"
    "{% if add_generation_prompt %}<ASSISTANT>{% endif %}{% if tools is not none %}TOOLS{% endif %}",
    "slices": "{% if messages[0]['role'] == 'system' %}"
    "{% set system = messages[0]['content'] %}{% set messages = messages[1:] %}"
    "{% else %}{% set system = false %}{% endif %}{{ system }}"
    "{% for m in messages %}{{ m['content'].split(' ')[-1] }}{% endfor %}",
}


def render(source: str, tokenizer: Tokenizer) -> list[int]:
    return ChatTemplate(source, "test").render(CHAT, tokenizer)


@pytest.mark.parametrize("source", TEMPLATES.values(), ids=TEMPLATES)
def test_a_template_renders_to_transformers_tokens(source: str, tiny_model: Path, tiny: LanguageModel) -> None:
    reference: Any = PreTrainedTokenizerFast.from_pretrained(tiny_model)
    messages = [{"role": message.role, "content": message.content} for message in CHAT]
    wanted = reference.apply_chat_template(
        messages, chat_template=source, add_generation_prompt=True, return_dict=False
    )
    assert render(source, tiny.tokenizer) == list(wanted)


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("\n{{ messages | nosuch }}", "line 2"),
        ("{{ messages[99].content }}", "no element 99"),
        ("{{ 1 / 0 }}", "division"),
        ("{{ messages.append(1) }}", "unsafe|not safely"),
        ("{{ messages + 1 }}", "list"),
    ],
)
def test_a_template_that_fails_is_one_error(source: str, complaint: str, tiny: LanguageModel) -> None:
    with pytest.raises(TemplateError, match=complaint):
        render(source, tiny.tokenizer)


def test_a_template_file_beside_the_model_comes_first(tmp_path: Path) -> None:
    tokenizer = Tokenizer.open(make_model(tmp_path))
    (tmp_path / "chat_template.jinja").write_text("from the file")
    assert ChatTemplate.of_model(tmp_path, tokenizer).source == "from the file"


def test_the_default_is_used_if_templates_have_names(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    tokenizer = Tokenizer.open(make_model(tmp_path, template=named))  # type: ignore[arg-type]
    assert ChatTemplate.of_model(tmp_path, tokenizer).source == "D"


def test_a_template_that_is_not_utf8_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(b"ab\xff")
    with pytest.raises(InputError, match="byte 2 is not UTF-8"):
        ChatTemplate.from_file(tmp_path / "t")
