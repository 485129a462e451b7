"""`gptcli tokenize`: shows the tokens of texts."""

from __future__ import annotations

from typing import Annotated

import typer

from gptcli.cli import options
from gptcli.cli.parsing.option_groups import option_group, panel, with_option_groups
from gptcli.cli.prompt_input import Decoding, argument_text
from gptcli.cli.terminal.capabilities import uses_colour
from gptcli.cli.terminal.columns import terminal_columns
from gptcli.cli.terminal.stderr import ProgressLine, print_note
from gptcli.cli.terminal.stdout import StdoutSink
from gptcli.cli.tokens import compare as token_compare
from gptcli.cli.tokens import decode as token_decode
from gptcli.cli.tokens.inputs import ConversationReader, TextReader, open_tokenizer
from gptcli.cli.tokens.truncate import truncate as write_truncated
from gptcli.cli.tokens.views import TokenViews
from gptcli.cli.tokens.vocabulary_search import search
from gptcli.errors import UsageError
from gptcli.models.catalog import DEFAULT_MODEL, missing_root_notes

_input_option, _view_option, _task_option = panel("Input"), panel("Views"), panel("Instead of a view")

Files = Annotated[
    list[str] | None,
    typer.Argument(metavar="FILE", help="Texts; `-`, or nothing, reads stdin. With --decode, ids."),
]


@option_group
class InputOptions:
    """The texts, and how they are read."""

    text: Annotated[str | None, _input_option("Take this text instead.")] = None
    chat: Annotated[bool, _input_option("Files are conversations: a JSON list, or a message a line.", "--chat")] = False
    chat_template: options.ChatTemplateFile = None
    special: Annotated[bool, _input_option("Read control tokens such as <|im_end|> in the text.", "--special")] = False
    add_special: Annotated[
        bool, _input_option("Add what the model expects around a text, such as BOS.", "--add-special")
    ] = False
    errors: options.Errors = "strict"
    max_input: Annotated[
        int | None,
        _input_option("Largest input in bytes. (default: any; 16777216 where it must be encoded in one piece)", min=1),
    ] = None


@option_group
class ViewOptions:
    """How the tokens are shown."""

    table: Annotated[bool, _view_option("A row a token, with all about it.", "--table")] = False
    tsv: Annotated[bool, _view_option("The same for programs, between tabs.", "--tsv")] = False
    ids: Annotated[bool, _view_option("Only ids, a line a file.", "--ids")] = False
    count: Annotated[bool, _view_option("Only how many there are.", "--count")] = False
    as_json: Annotated[bool, _view_option("One JSON object a file a line.", "--json")] = False
    stats: Annotated[bool, _view_option("Figures: bytes, tokens, bytes a token, longest tokens, ...", "--stats")] = (
        False
    )
    color: options.Color = "auto"


@option_group
class TaskOptions:
    """Tasks instead of showing tokens."""

    decode: Annotated[
        bool, _task_option("The text of ids: arguments, or `-` for stdin; a JSON list too.", "--decode")
    ] = False
    truncate: Annotated[
        int | None, _task_option("The text, cut to at most N tokens and no half character.", min=0, metavar="N")
    ] = None
    from_end: Annotated[bool, _task_option("With --truncate: keep the end, not the beginning.", "--from-end")] = False
    partial: Annotated[
        bool, _task_option("With --truncate: exactly N tokens, even if that cuts a character.", "--partial")
    ] = False
    roundtrip: Annotated[
        bool, _task_option("Whether decoding gives the text again; exits with 3 if not.", "--roundtrip")
    ] = False
    compare: Annotated[
        str | None,
        _task_option(
            "Where another model's tokenizer cuts differently.",
            metavar="MODEL",
            autocompletion=options.model_names,
        ),
    ] = None
    vocab: Annotated[str | None, _task_option("Tokens that a regular expression finds.", metavar="PATTERN")] = None
    id: Annotated[list[int] | None, _task_option("The token of an id. Repeatable.", metavar="N")] = None


@with_option_groups
def tokenize(
    files: Files = None,
    *,
    model: options.TokenizerModel = DEFAULT_MODEL,
    offline: options.Offline = False,
    given: InputOptions,
    view: ViewOptions,
    task: TaskOptions,
    quiet: options.Quiet = False,
) -> None:
    """Show how a tokenizer cuts texts: tokens, ids, bytes and positions."""
    mode = _mode(files, given, view, task)
    text = None if given.text is None else argument_text(given.text)
    decoding = Decoding(given.errors, given.max_input, (lambda note: None) if quiet else print_note)
    reading = TextReader(decoding, given.special, given.add_special, text)
    names = [] if mode in ("--decode", "--vocab", "--id") else reading.names(files)
    if mode == "--truncate" and len(names) > 1:
        raise UsageError("--truncate takes one text")
    sink = StdoutSink()
    with ProgressLine(quiet=quiet) as activity:
        for note in missing_root_notes(model):
            activity.note(note)
        tokenizer, path = open_tokenizer(model, offline, activity.fetch)
        activity.note_leftovers(tokenizer.notes)
        other = None if task.compare is None else open_tokenizer(task.compare, offline, activity.fetch)[0]
    colour = uses_colour(sink.is_terminal) if view.color == "auto" else view.color == "always"
    columns = terminal_columns() if sink.is_terminal or view.color == "always" else None
    conversations = ConversationReader(path, given.chat_template, reading) if given.chat else None
    show = TokenViews(tokenizer, reading, conversations, sink, columns, colour=colour)
    match mode:
        case "--decode":
            token_decode.decode(files or [], tokenizer, sink, decoding)
        case "--truncate":
            limit, cut = task.truncate or 0, {"from_end": task.from_end, "partial": task.partial}
            write_truncated(reading, names[0], tokenizer, sink, limit, **cut)
        case "--roundtrip":
            token_decode.roundtrip(reading, names, tokenizer, sink, as_json=view.as_json)
        case "--compare":
            assert other is not None and task.compare is not None
            both = (model, task.compare), (tokenizer, other)
            token_compare.compare(reading, names, *both, sink, columns or 80, colour=colour, as_json=view.as_json)
        case "--vocab" | "--id":
            search(tokenizer, task.vocab, task.id or [], as_json=view.as_json)
        case "--stats":
            show.stats(names, path, as_json=view.as_json)
        case _:
            views = {"--table": show.table, "--tsv": show.tsv, "--ids": show.ids, "--count": show.count}
            views.get(mode, show.json if view.as_json else show.flow)(names)
    for opened in filter(None, (tokenizer, other)):
        opened.keep()


def _mode(files: list[str] | None, given: InputOptions, view: ViewOptions, task: TaskOptions) -> str:
    """The option that chooses a view or task, "" for the usual view. Raises UsageError for options that conflict."""
    views = {"--table": view.table, "--tsv": view.tsv, "--ids": view.ids, "--count": view.count, "--stats": view.stats}
    tasks = {
        "--decode": task.decode,
        "--truncate": task.truncate is not None,
        "--roundtrip": task.roundtrip,
        "--compare": task.compare is not None,
        "--vocab": task.vocab is not None,
        "--id": bool(task.id),
    }
    chosen = [name for name, is_chosen in (views | tasks).items() if is_chosen]
    if len(chosen) > 1:
        raise UsageError(f"{chosen[0]} and {chosen[1]} exclude each other")
    mode = chosen[0] if chosen else "--json" if view.as_json else ""
    _refuse(
        mode,
        {
            "--json": view.as_json and mode in ("--table", "--tsv", "--ids", "--count", "--decode", "--truncate"),
            "--special": given.special and mode in ("--decode", "--vocab", "--id"),
            "--add-special": given.add_special and mode in tasks,
            "--chat": given.chat and mode in tasks,
            "--text": given.text is not None and mode in ("--decode", "--vocab", "--id"),
            "--color": view.color != "auto" and bool(mode),
            "a FILE": bool(files) and mode in ("--vocab", "--id"),
        },
    )
    if given.chat_template is not None and not given.chat:
        raise UsageError("--chat-template needs --chat")
    if (task.from_end or task.partial) and task.truncate is None:
        raise UsageError(f"{'--from-end' if task.from_end else '--partial'} needs --truncate")
    if given.chat:
        meaningless = {"--special": given.special, "--add-special": given.add_special, "--text": given.text is not None}
        _refuse("--chat", meaningless)
    if given.text is not None and files:
        raise UsageError("--text and a FILE exclude each other")
    return mode


def _refuse(mode: str, meaningless: dict[str, bool]) -> None:
    for name, is_given in meaningless.items():
        if is_given:
            raise UsageError(f"{name} has no meaning with {mode}")
