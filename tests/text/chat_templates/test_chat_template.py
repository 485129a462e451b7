from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from gptcli import LanguageModel
from gptcli.errors import BrokenCheckpoint, InputError, NoTemplate, TemplateError
from gptcli.text.chat_templates.chat_template import ChatTemplate
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


@pytest.mark.parametrize(("source", "complaint"), [
    ("\n{{ messages | nosuch }}", "line 2"),
    ("{{ messages[99].content }}", "no element 99"),
    ("{{ 1 / 0 }}", "division"),
    ("{{ messages.append(1) }}", "unsafe|not safely"),
    ("{{ messages + 1 }}", "list"),
])  # fmt: skip
def test_a_template_that_fails_is_one_error(source: str, complaint: str, tiny: LanguageModel) -> None:
    with pytest.raises(TemplateError, match=complaint):
        render(source, tiny.tokenizer)


NAMED = [{"name": "tool_use", "template": "T"}, {"name": "rag", "template": "R{{ messages[0].content }}"}]
DEFAULT = {"name": "default", "template": "D{{ messages[0].content }}"}


@pytest.mark.parametrize("additional", [False, True])
@pytest.mark.parametrize("jinja", [None, "J{{ messages[0].content }}"])
@pytest.mark.parametrize("config", [None, "C{{ messages[0].content }}", NAMED, [*NAMED, DEFAULT], [DEFAULT, DEFAULT]])
def test_the_template_of_each_name_is_transformers(
    config: Any, jinja: str | None, additional: bool, tmp_path: Path
) -> None:
    make_model(tmp_path, template=config)
    if jinja:
        (tmp_path / "chat_template.jinja").write_text(jinja)
    if additional:
        (tmp_path / "additional_chat_templates").mkdir()
        (tmp_path / "additional_chat_templates" / "brief.jinja").write_text("B{{ messages[0].content }}")
    reference: Any = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    tokenizer = Tokenizer.open(tmp_path)
    for name in (None, "default", "rag", "tool_use", "brief", "other"):
        theirs = reference.chat_template
        named = theirs if isinstance(theirs, dict) else {"default": theirs}
        wanted = named.get(name or "default")
        assert name is not None or wanted is None or reference.get_chat_template() == wanted
        try:
            source = ChatTemplate.of_model(tmp_path, tokenizer, name).source
        except NoTemplate:
            source = None
        assert source == wanted, name


def test_a_template_that_is_missing_is_an_error_with_the_names_that_there_are(tmp_path: Path) -> None:
    tokenizer = Tokenizer.open(make_model(tmp_path, template=NAMED))  # type: ignore[arg-type]
    with pytest.raises(NoTemplate, match="none of its templates is the default one; there are: rag, tool_use") as error:
        ChatTemplate.of_model(tmp_path, tokenizer)
    assert error.value.hint == "choose one with --chat-template NAME"
    with pytest.raises(NoTemplate, match="there is no template brief; there are: rag, tool_use"):
        ChatTemplate.of_model(tmp_path, tokenizer, "brief")


def test_a_file_for_processors_is_read_where_there_is_no_other(tmp_path: Path) -> None:
    tokenizer = Tokenizer.open(make_model(tmp_path, template=None))
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": [DEFAULT, *NAMED]}))
    assert ChatTemplate.of_model(tmp_path, tokenizer).source == DEFAULT["template"]
    assert ChatTemplate.of_model(tmp_path, tokenizer, "tool_use").source == "T"


@pytest.mark.parametrize("config", [7, [7], [{"name": "default"}], [{"name": "a", "template": 1}], {"a": ["b"]}, True])
def test_something_else_in_place_of_a_template_is_refused(config: Any, tmp_path: Path) -> None:
    tokenizer = Tokenizer.open(make_model(tmp_path, template=config))
    with pytest.raises(TemplateError, match="tokenizer_config.json: chat_template must be text, not "):
        ChatTemplate.of_model(tmp_path, tokenizer)


def test_an_additional_template_may_be_a_blob_of_the_hubs_cache(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "abc").write_text("from a blob")
    model = make_model(tmp_path / "snapshots" / "1")
    (model / "additional_chat_templates").mkdir()
    link = model / "additional_chat_templates" / "brief.jinja"
    link.symlink_to("../../../blobs/abc")
    assert ChatTemplate.of_model(model, Tokenizer.open(model), "brief").source == "from a blob"
    link.unlink()
    (tmp_path / "elsewhere").write_text("from elsewhere")
    (model / "additional_chat_templates").chmod(0o777)  # not the user's alone
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BrokenCheckpoint, match="a link out of the model's directory"):
        ChatTemplate.of_model(model, Tokenizer.open(model), "brief")


@pytest.mark.parametrize(("source", "reads"), [
    ("{% if thinking %}", True),
    ("{%- if not thinking is defined %}{% set thinking = false %}{% endif %}", True),
    ("{% set thinking = thinking | default(true) %}", True),
    ("{{ f(thinking=thinking) }}", True),
    ("{{ a if thinking else b }}", True),
    ("{% if m.x == '}' and thinking %}", True),
    ("thinking {# {{ thinking }} #}", False),
    ("{{ 'thinking' }}{{ \"no thinking\" }}{{ 'it\\'s thinking' }}", False),
    ("{% if message.thinking %}{{ message['thinking'] }}{% endif %}", False),
    ("{% set thinking = message.thought %}{{ thinking }}", False),
    ("{% for thinking in messages %}{{ thinking }}{% endfor %}", False),
    ("{% macro turn(thinking) %}{{ thinking }}{% endmacro %}", False),
    ("{{ namespace(thinking=1) }}{{ enable_thinking_x }}{{ thinking_budget }}", False),
])  # fmt: skip
def test_a_switch_is_known_where_the_template_reads_what_it_is_given(source: str, reads: bool) -> None:
    for variable, switch in (("thinking",) * 2, ("enable_thinking", "thinking"), ("reasoning_effort",) * 2):
        template = ChatTemplate(source.replace("thinking", variable), "test")
        assert (switch not in template.missing_switches) == reads


def test_a_template_that_is_not_utf8_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(b"ab\xff")
    with pytest.raises(InputError, match="byte 2 is not UTF-8"):
        ChatTemplate.from_file(tmp_path / "t")
