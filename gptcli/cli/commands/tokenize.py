"""`gptcli tokenize`: a tokenizer laid open. What is asked for, and that it makes sense together."""

from __future__ import annotations

from typing import Annotated

import typer

from gptcli.cli import options
from gptcli.cli.prompt_input import argument_text
from gptcli.cli.terminal.capabilities import uses_colour
from gptcli.cli.terminal.columns import terminal_columns
from gptcli.cli.terminal.stderr import ProgressLine
from gptcli.cli.terminal.stdout import StdoutSink
from gptcli.cli.tokens import compare as token_compare
from gptcli.cli.tokens import decode as token_decode
from gptcli.cli.tokens.inputs import ConversationReader, TextReader, open_tokenizer
from gptcli.cli.tokens.truncate import truncate as write_truncated
from gptcli.cli.tokens.views import TokenViews
from gptcli.cli.tokens.vocabulary_search import search
from gptcli.errors import UsageError
from gptcli.models.catalog import DEFAULT_MODEL

_INPUT, _VIEW, _TASK = "Input", "Views", "Instead of a view"

Files = Annotated[
    list[str] | None,
    typer.Argument(metavar="[FILE]...", help="Texts; `-`, or nothing, reads stdin. With --decode, ids."),
]
Text = Annotated[str | None, typer.Option("--text", rich_help_panel=_INPUT, help="Take this text instead.")]
ChatFile = Annotated[
    bool,
    typer.Option("--chat", rich_help_panel=_INPUT, help="Files are conversations: a JSON list, or a message a line."),
]
Special = Annotated[
    bool, typer.Option("--special", rich_help_panel=_INPUT, help="Read control tokens such as <|im_end|> in the text.")
]
AddSpecial = Annotated[
    bool,
    typer.Option(
        "--add-special", rich_help_panel=_INPUT, help="Add what the model expects around a text, such as BOS."
    ),
]
MaxInput = Annotated[
    int | None,
    typer.Option(
        "--max-input", min=1, rich_help_panel=_INPUT,
        help="Largest input in bytes. (default: any; 16777216 where it must be encoded in one piece)",
    ),
]  # fmt: skip
Table = Annotated[bool, typer.Option("--table", rich_help_panel=_VIEW, help="A row a token, with all about it.")]
Tsv = Annotated[bool, typer.Option("--tsv", rich_help_panel=_VIEW, help="The same for programs, between tabs.")]
Ids = Annotated[bool, typer.Option("--ids", rich_help_panel=_VIEW, help="Only ids, a line a file.")]
Count = Annotated[bool, typer.Option("--count", rich_help_panel=_VIEW, help="Only how many there are.")]
Json = Annotated[bool, typer.Option("--json", rich_help_panel=_VIEW, help="One JSON object a file a line.")]
Stats = Annotated[
    bool,
    typer.Option("--stats", rich_help_panel=_VIEW, help="Figures: bytes, tokens, bytes a token, longest tokens, ..."),
]
Decode = Annotated[
    bool,
    typer.Option(
        "--decode", rich_help_panel=_TASK, help="The text of ids: arguments, or `-` for stdin; a JSON list too."
    ),
]
Truncate = Annotated[
    int | None,
    typer.Option(
        "--truncate",
        min=0,
        metavar="N",
        rich_help_panel=_TASK,
        help="The text, cut to at most N tokens and no half character.",
    ),
]
FromEnd = Annotated[
    bool, typer.Option("--from-end", rich_help_panel=_TASK, help="With --truncate: keep the end, not the beginning.")
]
Partial = Annotated[
    bool,
    typer.Option(
        "--partial", rich_help_panel=_TASK, help="With --truncate: exactly N tokens, if that halves a character."
    ),
]
Roundtrip = Annotated[
    bool,
    typer.Option(
        "--roundtrip", rich_help_panel=_TASK, help="Whether decoding gives the text again; exits with 3 where not."
    ),
]
Compare = Annotated[
    str | None,
    typer.Option(
        "--compare", metavar="MODEL", autocompletion=options.model_names, rich_help_panel=_TASK,
        help="Where another model's tokenizer cuts otherwise.",
    ),
]  # fmt: skip
Vocab = Annotated[
    str | None,
    typer.Option("--vocab", metavar="PATTERN", rich_help_panel=_TASK, help="Tokens that a regular expression finds."),
]
Id = Annotated[
    list[int] | None, typer.Option("--id", metavar="N", rich_help_panel=_TASK, help="The token of an id. Repeatable.")
]


def tokenize(
    files: Files = None,
    model: options.TokenizerModel = DEFAULT_MODEL,
    offline: options.Offline = False,
    text: Text = None,
    chat: ChatFile = False,
    chat_template: options.ChatTemplateFile = None,
    special: Special = False,
    add_special: AddSpecial = False,
    errors: options.Errors = "strict",
    max_input: MaxInput = None,
    table: Table = False,
    tsv: Tsv = False,
    ids: Ids = False,
    count: Count = False,
    as_json: Json = False,
    stats: Stats = False,
    color: options.Color = "auto",
    decode: Decode = False,
    truncate: Truncate = None,
    from_end: FromEnd = False,
    partial: Partial = False,
    roundtrip: Roundtrip = False,
    compare: Compare = None,
    vocab: Vocab = None,
    id: Id = None,
    quiet: options.Quiet = False,
) -> None:
    """Lay a tokenizer open: the tokens of texts, their ids, bytes and places."""
    views = {"--table": table, "--tsv": tsv, "--ids": ids, "--count": count, "--stats": stats}
    tasks = {
        "--decode": decode,
        "--truncate": truncate is not None,
        "--roundtrip": roundtrip,
        "--compare": compare is not None,
        "--vocab": vocab is not None,
        "--id": bool(id),
    }
    chosen = [name for name, given in (views | tasks).items() if given]
    if len(chosen) > 1:
        raise UsageError(f"{chosen[0]} and {chosen[1]} exclude each other")
    mode = chosen[0] if chosen else "--json" if as_json else ""
    _refuse(
        mode,
        {
            "--json": as_json and mode in ("--table", "--tsv", "--ids", "--count", "--decode", "--truncate"),
            "--special": special and mode in ("--decode", "--vocab", "--id"),
            "--add-special": add_special and mode in tasks,
            "--chat": chat and mode in tasks,
            "--text": text is not None and mode in ("--decode", "--vocab", "--id"),
            "--color": color != "auto" and bool(mode),
            "a FILE": bool(files) and mode in ("--vocab", "--id"),
        },
    )
    if chat_template is not None and not chat:
        raise UsageError("--chat-template needs --chat")
    if (from_end or partial) and truncate is None:
        raise UsageError(f"{'--from-end' if from_end else '--partial'} needs --truncate")
    _refuse(
        "--chat",
        {"--special": chat and special, "--add-special": chat and add_special, "--text": chat and text is not None},
    )
    if text is not None and files:
        raise UsageError("--text and a FILE exclude each other")

    reader = TextReader(errors, max_input, special, add_special, None if text is None else argument_text(text))
    names = [] if mode in ("--decode", "--vocab", "--id") else reader.names(files)
    if mode == "--truncate" and len(names) > 1:
        raise UsageError("--truncate takes one text")
    sink = StdoutSink()
    with ProgressLine(quiet=quiet) as activity:
        tokenizer, path = open_tokenizer(model, offline, activity.fetch)
        other = None if compare is None else open_tokenizer(compare, offline, activity.fetch)[0]
    colours = uses_colour(sink.is_terminal) if color == "auto" else color == "always"
    columns = terminal_columns() if sink.is_terminal or color == "always" else None
    conversations = ConversationReader(path, chat_template, reader) if chat else None
    show = TokenViews(tokenizer, reader, conversations, sink, columns, colour=colours)
    match mode:
        case "--decode":
            token_decode.decode(files or [], tokenizer, sink, errors)
        case "--truncate":
            write_truncated(reader, names[0], tokenizer, sink, truncate or 0, from_end=from_end, partial=partial)
        case "--roundtrip":
            token_decode.roundtrip(reader, names, tokenizer, sink, as_json=as_json)
        case "--compare":
            assert other is not None and compare is not None
            both = (model, compare), (tokenizer, other)
            token_compare.compare(reader, names, *both, sink, columns or 80, colour=colours, as_json=as_json)
        case "--vocab" | "--id":
            search(tokenizer, vocab, id or [], as_json=as_json)
        case "--stats":
            show.stats(names, path, as_json=as_json)
        case "--table":
            show.table(names)
        case "--tsv":
            show.tsv(names)
        case "--ids":
            show.ids(names)
        case "--count":
            show.count(names)
        case "--json":
            show.json(names)
        case _:
            show.flow(names)


def _refuse(mode: str, given: dict[str, bool]) -> None:
    for name, wrong in given.items():
        if wrong:
            raise UsageError(f"{name} has no meaning with {mode}")
