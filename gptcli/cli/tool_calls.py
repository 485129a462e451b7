"""Calls of tools on stdout, and files of messages that answer them."""

from __future__ import annotations

from pathlib import Path

from gptcli.cli.json_records import json_line
from gptcli.cli.prompt_input import Decoding, read_text, unless_dash
from gptcli.cli.terminal.stdout import StdoutSink
from gptcli.errors import UsageError
from gptcli.generation.events import Finished
from gptcli.text.messages import Message, messages_of
from gptcli.tools.json_reading import read_whole


def write_calls(sink: StdoutSink, finished: Finished) -> None:
    """Writes a text's calls after it, each as a line of JSON."""
    if finished.tool_calls:
        sink.end_line()
    for call in finished.tool_calls:
        sink.write(json_line({"name": call.name, "arguments": call.arguments}))


def read_messages(file: Path, decoding: Decoding) -> list[Message]:
    """The messages of a file: a JSON list as in chat APIs, or an object with one as `messages`.

    Raises UsageError, which says where, for anything else; and as `read_text`.
    """
    try:
        value = read_whole(read_text(unless_dash(file), decoding))
        return messages_of(value["messages"] if isinstance(value, dict) and "messages" in value else value)
    except ValueError as error:
        raise UsageError(f"{file}: not JSON: {error}") from None
    except UsageError as error:
        raise UsageError(f"{file}: {error.message}") from None
