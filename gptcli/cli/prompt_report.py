"""The report of `--prompt-report`: the exact prompt, its tokens, stops, settings, memory. Needs no weights."""

from __future__ import annotations

import json
from collections.abc import Container, Sequence
from dataclasses import dataclass, fields
from typing import Any, Unpack

from gptcli.cli.json_records import json_line
from gptcli.cli.model_facts import doubled_bos, has_template, sampling_facts, stop_sources, weight_bytes
from gptcli.cli.options import OutputOptions
from gptcli.cli.terminal.capabilities import uses_colour
from gptcli.cli.terminal.columns import terminal_columns
from gptcli.cli.terminal.stderr import print_note, size
from gptcli.cli.terminal.stdout import StdoutSink
from gptcli.cli.terminal.tables import print_records, spelled
from gptcli.cli.terminal.token_flow import TokenFlow, grouped, spell
from gptcli.language_model import LanguageModel
from gptcli.runtime.resource_limits import available_memory
from gptcli.settings import SamplingConfig, StopConfig
from gptcli.text.chat_templates.chat_template import ChatTemplate, Switches
from gptcli.text.messages import Message

_NUMBERS = [field.name for field in fields(SamplingConfig) if isinstance(field.default, int | float)]
_IDS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids")


@dataclass(frozen=True)
class GivenPrompt:
    """A prompt as a model gets it.

    text: without the tokens that the tokenizer adds. origins: for each id `template`, `tokenizer` or `typed` if it is a
    control token, else None. template: the template's file, None for raw text. spelled: names of control tokens in the
    prompt that stay text.
    """

    text: str
    ids: tuple[int, ...]
    origins: tuple[str | None, ...]
    template: str | None
    spelled: tuple[str, ...]


def raw_prompt(lm: LanguageModel, text: str, *, special: bool) -> GivenPrompt:
    """A text to be continued."""
    tokenizer = lm.tokenizer
    ids = tokenizer.encode(text, special=special)
    before, after = map(len, tokenizer.surroundings)
    added = {*range(before), *range(len(ids) - after, len(ids))}
    origins = [
        "tokenizer" if position in added else "typed" if tokenizer.is_control(id) else None
        for position, id in enumerate(ids)
    ]
    return GivenPrompt(text, tuple(ids), tuple(origins), None, () if special else tokenizer.spelled_controls(text))


def rendered_prompt(
    lm: LanguageModel, messages: Sequence[Message], template: ChatTemplate, **switches: Unpack[Switches]
) -> GivenPrompt:
    """A conversation in a chat template, up to the assistant's next turn. Raises TemplateError."""
    text = template.render_text(messages, lm.tokenizer, **switches)
    ids = template.render(messages, lm.tokenizer, **switches)
    origins = ["template" if lm.tokenizer.is_control(id) else None for id in ids]
    spelled = dict.fromkeys(name for message in messages for name in lm.tokenizer.spelled_controls(message.content))
    return GivenPrompt(text, tuple(ids), tuple(origins), template.where, tuple(spelled))


def _report(
    lm: LanguageModel, prompt: GivenPrompt, given: Container[str], sampling: SamplingConfig, stopping: StopConfig
) -> dict[str, Any]:
    """The report as `--json` writes it."""
    wanted = lm.ctx_size if stopping.max_tokens < 0 else len(prompt.ids) + stopping.max_tokens
    context = min(lm.ctx_size, wanted)
    stops: dict[int, list[str]] = {}
    for source, ids in stop_sources(lm).items():
        for id in ids:
            stops.setdefault(id, []).append(source)
    return {
        "model": lm.name,
        "path": str(lm.folder.path),
        "template": prompt.template,
        "text": prompt.text,
        "prompt_tokens": len(prompt.ids),
        "ctx_size": lm.ctx_size,
        "tokens": [
            {"id": id, "token": lm.tokenizer.token_name(id), "special": origin}
            for id, origin in zip(prompt.ids, prompt.origins, strict=True)
        ],
        "doubled_bos": doubled_bos(lm.tokenizer, prompt.ids) is not None,
        "stop_ids": [{"id": id, "token": lm.tokenizer.token_name(id), "from": where} for id, where in stops.items()],
        "stop": list(stopping.strings),
        "max_tokens": stopping.max_tokens,
        "sampling": sampling_facts(lm, sampling, [*_NUMBERS, *filter(sampling.__getattribute__, _IDS)], by_flag=given),
        "bytes": {
            **weight_bytes(lm),
            "cache_in_fp32": lm.folder.architecture.config.cache_bytes(context, 4),
            "free_now": available_memory(),
        },
        "notes": [*map(str, lm.notes), *_notes(lm, prompt, stopping, wanted)],
    }


def print_prompt_report(
    lm: LanguageModel,
    prompt: GivenPrompt,
    given: Container[str],
    sampling: SamplingConfig,
    stopping: StopConfig,
    output: OutputOptions,
) -> None:
    """Prints the report: as JSON, as tokens and a table on a terminal, or as names and values in a pipe.

    given: the names of the sampling settings that an option gave. Notes go to stderr, or into the JSON.
    """
    sink, report = StdoutSink(), _report(lm, prompt, given, sampling, stopping)
    if output.as_json:
        sink.write(json_line(report))
        return
    rows = _rows(report)
    if sink.is_terminal:
        flow = TokenFlow(terminal_columns(), colour=uses_colour(sink.is_terminal))
        tokenizer = lm.tokenizer
        pieces = ((tokenizer.token_bytes(id), tokenizer.is_control(id)) for id in prompt.ids)
        sink.draw("".join(map(flow.add, grouped(pieces))) + flow.end() + "\n")
        rows = [row for row in rows if row["name"] != "text"]
    print_records(rows, as_json=False, header=False)
    for note in () if output.quiet else report["notes"]:
        print_note(note)


def _rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The report as names and values."""
    rows: list[tuple[str, Any]] = [
        ("model", report["model"]),
        ("path", report["path"]),
        ("template", report["template"] or "none: raw text"),
        ("text", json.dumps(report["text"], ensure_ascii=False)),
        ("tokens", f"{report['prompt_tokens']} of {report['ctx_size']}"),
        ("ids", " ".join(str(token["id"]) for token in report["tokens"])),
    ]
    for position, token in enumerate(report["tokens"]):
        if token["special"]:
            shown = spell(token["token"].encode())
            rows.append((f"special.{position}", f"{token['id']} {shown} ({token['special']})"))
    rows.append(("doubled_bos", "yes" if report["doubled_bos"] else "no"))
    for stop in report["stop_ids"]:
        rows.append((f"stop.{stop['id']}", f"{spell(stop['token'].encode())} ({', '.join(stop['from'])})"))
    rows += [("stop.text", json.dumps(text, ensure_ascii=False)) for text in report["stop"]]
    rows.append(("max_tokens", report["max_tokens"]))
    rows += [(f"sampling.{name}", spelled(each)) for name, each in report["sampling"].items()]
    rows += [(f"bytes.{name}", f"{count} ({size(count)})") for name, count in report["bytes"].items()]
    return [{"name": name, "value": value} for name, value in rows]


def _notes(lm: LanguageModel, prompt: GivenPrompt, stopping: StopConfig, wanted: int) -> list[str]:
    """Notes on what makes models answer nonsense."""
    tokenizer, notes = lm.tokenizer, []
    head = tokenizer.surroundings[0]
    if bos := doubled_bos(tokenizer, prompt.ids):
        where = " and ".join(str(origin) for origin in prompt.origins[:2])
        notes.append(f"the text begins with {bos} twice (from: {where}), which no model was trained on")
    if prompt.template is not None and head and prompt.ids[: len(head)] != head:
        notes.append(f"the template does not begin with {tokenizer.token_name(head[0])}, as raw texts do")
    if prompt.template is None and has_template(lm):
        notes.append("this model has a chat template, and the prompt is raw text to continue; --chat asks a question")
    if prompt.spelled:
        hint = "" if prompt.template else "; --special reads it as the token"
        notes.append(f"{', '.join(prompt.spelled)} in the prompt is text, not a control token{hint}")
    if prompt.template is None and prompt.text.endswith(" "):
        notes.append("the prompt ends with a space, which models expect at the beginning of the next word")
    if tokenizer.unknown_id is not None and (unknown := prompt.ids.count(tokenizer.unknown_id)):
        name = tokenizer.token_name(tokenizer.unknown_id)
        notes.append(f"the vocabulary cannot spell all of the prompt: {unknown} tokens are {name}")
    if not prompt.ids:
        notes.append("the prompt is empty")
    if len(prompt.ids) >= lm.ctx_size:
        notes.append(f"the prompt does not fit: {len(prompt.ids)} tokens in a context of {lm.ctx_size}")
    elif wanted > lm.ctx_size:
        notes.append(f"{len(prompt.ids)} + {stopping.max_tokens} tokens are more than the context of {lm.ctx_size}")
    if not lm.stop_ids:
        notes.append("no token ends a text; only --stop and --max-tokens do")
    elif stopping.ignore_eos:
        notes.append("--ignore-eos: the tokens that end a text are never drawn")
    return notes
