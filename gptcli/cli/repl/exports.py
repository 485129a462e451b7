"""A conversation as a file: forms that /export writes, by the ending of a file's name.

Each takes the messages, and facts such as the model. Facts are in words but for JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gptcli.cli.probabilities.picture_content import DARK, LIGHT, markup
from gptcli.text.messages import Message, message_record

_STYLE = f"""
:root {{ color-scheme: light dark; {LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root {{ {DARK} }} }}
body {{ margin: 2rem auto; padding: 0 1rem; max-width: 48rem; background: var(--page); color: var(--ink); }}
body {{ font: 1rem/1.5 system-ui, sans-serif; }}
h2 {{ font-size: 1rem; margin: 2rem 0 .5rem; }}
ul, h2 {{ color: var(--faint); }}
p {{ margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }}
"""


def _as_json(messages: Sequence[Message], facts: Mapping[str, Any]) -> str:
    """The messages after the facts."""
    whole = {**facts, "messages": [message_record(message) for message in messages]}
    return json.dumps(whole, ensure_ascii=False, indent=2) + "\n"


def _as_json_line(messages: Sequence[Message], facts: Mapping[str, Any]) -> str:
    """A line of training data, as OpenAI and `gptcli train` read it: messages, and tools if there are any."""
    records = [message_record(message) for message in messages]
    for record in records:
        record.pop("interrupted", None)
    tools = {"tools": facts["tools"]} if facts.get("tools") else {}
    return json.dumps({"messages": records, **tools}, ensure_ascii=False) + "\n"


def _as_markdown(messages: Sequence[Message], facts: Mapping[str, Any]) -> str:
    """A list of the facts; then for each message a heading, and its text unchanged."""
    sections = ["".join(f"- {name}: {value}\n" for name, value in facts.items())]
    for message in messages:
        calls = "".join(f"\n```json\n{call}\n```\n" for call in _calls(message))
        sections.append(f"## {_speaker(message)}\n\n{message.content.strip()}\n{calls}")
    return "\n".join(sections)


def _as_text(messages: Sequence[Message], facts: Mapping[str, Any]) -> str:
    """The same without marks."""
    sections = ["".join(f"{name}: {value}\n" for name, value in facts.items())]
    for message in messages:
        sections.append(f"{_speaker(message)}:\n" + "".join(f"{text}\n" for text in _texts(message)))
    return "\n".join(sections)


def _as_html(messages: Sequence[Message], facts: Mapping[str, Any]) -> str:
    """A page of its own: no script, nothing fetched. Texts are not drawn as Markdown."""
    title = next((message.content for message in messages if message.role == "user"), "")
    title = markup(" ".join(title.split())[:80]) or "Conversation"
    items = "".join(f"<li>{markup(f'{name}: {value}')}</li>\n" for name, value in facts.items())
    body = "".join(
        f"<h2>{_speaker(message)}</h2>\n" + "".join(f'<p dir="auto">{markup(text)}</p>\n' for text in _texts(message))
        for message in messages
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{_STYLE}</style>
</head>
<body>
<ul>
{items}</ul>
{body}</body>
</html>
"""


def _speaker(message: Message) -> str:
    return message.role.capitalize() + (" (interrupted)" if message.interrupted else "")


def _texts(message: Message) -> list[str]:
    return [text for text in (message.content.strip(), *_calls(message)) if text]


def _calls(message: Message) -> list[str]:
    return [json.dumps(call.record["function"]) for call in message.calls]


FORMS: Mapping[str, Callable[[Sequence[Message], Mapping[str, Any]], str]] = {
    "md": _as_markdown,
    "txt": _as_text,
    "html": _as_html,
    "json": _as_json,
    "jsonl": _as_json_line,
}
