"""`gptcli score`: how probable texts are, line by line or token by token, and which of several continuations is."""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptcli.cli import options
from gptcli.cli.json_records import choices_record, json_line, score_record
from gptcli.cli.probabilities.picture_files import PictureFiles
from gptcli.cli.probabilities.score_output import (
    ScoreDisplay,
    choice_lines,
    score_figures,
    score_line,
    sortable,
    token_lines,
)
from gptcli.cli.probabilities.shaded_tokens import scored_tokens
from gptcli.cli.prompt_input import argument_text, read_prompt, text_blocks, text_lines
from gptcli.cli.terminal.signals import deadly
from gptcli.cli.terminal.stderr import ProgressLine
from gptcli.cli.terminal.stdout import StdoutSink
from gptcli.errors import InputError, UsageError
from gptcli.generation.request_checks import check_choices, check_scoring
from gptcli.generation.score_result import ChoiceScore, Score
from gptcli.language_model import LanguageModel
from gptcli.models.catalog import DEFAULT_MODEL
from gptcli.settings import RuntimeConfig

if TYPE_CHECKING:
    from gptcli.model.cache import KVCache

_WHAT = "What"
_PLACE = "{}"  # where a line goes in the prompt

Files = Annotated[
    list[Path] | None, typer.Argument(metavar="[FILE]...", help="Texts to score; `-`, or none, is stdin.")
]
Stride = Annotated[
    int | None,
    typer.Option(
        "--stride", metavar="N", rich_help_panel=_WHAT,
        help="Tokens that each further window of a long text scores. (default: half the context)",
    ),
]  # fmt: skip
Lines = Annotated[
    bool,
    typer.Option("--lines", rich_help_panel=_WHAT, help="Score each line by itself, as it comes: FIGURE TAB LINE."),
]
Choices = Annotated[
    list[str] | None,
    typer.Option(
        "--choices", metavar="A,B,...", rich_help_panel=_WHAT,
        help='How probable each continues the prompt. Repeatable; "a, b" in quotes may have a comma.',
    ),
]  # fmt: skip
ChoicesPrompt = Annotated[
    str | None,
    typer.Option(
        "--prompt", metavar="TEXT", rich_help_panel=_WHAT,
        help="What the choices continue, behind a piped text; with --lines, {} is the line.",
    ),
]  # fmt: skip
Top = Annotated[
    int | None,
    typer.Option("--top", min=0, metavar="N", rich_help_panel=_WHAT, help="A line a token, with the N likeliest."),
]


@dataclass(frozen=True)
class _Run:
    """A loaded model, how it is to score, and where that goes."""

    lm: LanguageModel
    cache: KVCache
    sink: StdoutSink
    activity: ProgressLine
    stride: int | None
    top: int | None
    special: bool
    as_json: bool

    def score(self, text: str, doing: str, top: int) -> Score:
        return self.lm.score(
            text,
            stride=self.stride,
            top=top,
            special=self.special,
            cache=self.cache,
            on_progress=partial(self.activity.tokens, doing),
        )

    def choose(self, prompt: str, choices: list[str]) -> tuple[ChoiceScore, ...]:
        return self.lm.choose(prompt, choices, special=self.special, cache=self.cache)


def score(
    files: Files = None,
    model: options.Model = DEFAULT_MODEL,
    device: options.Device = "auto",
    dtype: options.DtypeOption = "auto",
    quantize: options.QuantizeOption = "auto",
    ctx_size: options.CtxSize = None,
    threads: options.Threads = None,
    offline: options.Offline = False,
    stride: Stride = None,
    lines: Lines = False,
    choices: Choices = None,
    prompt: ChoicesPrompt = None,
    top: Top = None,
    special: options.Special = False,
    errors: options.Errors = "strict",
    max_input: options.MaxInput = options.MAX_INPUT,
    as_json: options.Json = False,
    html: options.Html = None,
    svg: options.Svg = None,
    quiet: options.Quiet = False,
) -> None:
    """Score texts: log-probability of every token, perplexity, bits a byte; or what may continue one."""
    runtime = RuntimeConfig(device=device, dtype=dtype, quantize=quantize, ctx_size=ctx_size, threads=threads)
    check_scoring(stride, top or 0)
    continuations = _choices(choices)
    pictures = PictureFiles(html, svg)
    _check_together(
        {"--choices": continuations, "--prompt": prompt is not None, "--lines": lines, "--stride": stride is not None,
         "--top": top is not None, "--html or --svg": pictures.wanted, "--json": as_json}
    )  # fmt: skip
    form = _PLACE if prompt is None else argument_text(prompt)
    if lines and _PLACE not in form:
        raise UsageError(f"with --lines, --prompt must have {_PLACE} where the line goes")
    asked = ""
    if continuations and not lines:
        if files and len(files) > 1:
            raise UsageError("--choices continue one text; --lines takes each line for one")
        asked = read_prompt(prompt, files[0] if files else None, errors, max_input)
        sources = []
    else:
        sources = _sources(files)

    sink = StdoutSink()
    with ProgressLine(quiet=quiet) as activity:
        lm = LanguageModel.open(model, runtime, offline=offline, on_fetch=activity.fetch)
        check_scoring(stride, top or 0, lm.longest_stride)
        loading = partial(activity.bytes, f"loading {lm.folder.path.name}")
        loading(0, 0)
        with deadly(activity.erase):
            engine = lm.load(loading)
        run = _Run(lm, engine.new_cache(), sink, activity, stride, top, special, as_json)
        if asked:
            _choose(run, asked, continuations)
        elif lines:
            for source in sources:
                for line in text_lines(source, errors, max_input):
                    activity.close()  # lines may come slowly, and what comes of them is the progress
                    sink.write(_chosen_line(run, form, continuations, line) if continuations else _line(run, line))
        else:
            _score_texts(run, sources, pictures, partial(text_blocks, errors=errors, max_input=max_input))


def _score_texts(run: _Run, sources: list[Path], pictures: PictureFiles, read: Callable[[Path], Iterator[str]]) -> None:
    """Each text's figures, tokens or shades, and a picture of them all."""
    shown = ScoreDisplay(run.sink, several=len(sources) > 1) if run.sink.is_terminal and not run.as_json else None
    for source in sources:
        text, name = "".join(read(source)), str(source)
        if not text:
            raise UsageError(f"there is nothing to score: {name}: it is empty")
        scored = run.score(text, f"scoring {name}", pictures.alternatives if run.top is None else run.top)
        run.activity.close()
        tokens = scored_tokens(scored, run.lm.tokenizer)
        pictures.add(name if len(sources) > 1 else "", tokens, score_figures(scored))
        if run.as_json:
            run.sink.write(json_line(score_record(run.lm, scored, {"file": name}, top=run.top is not None)))
        elif shown:
            shown.show(name, tokens, scored, with_alternatives=run.top is not None)
        else:
            run.sink.write(score_line(scored, name) if run.top is None else token_lines(tokens))
    pictures.write(f"{run.lm.name} · how probable each token is")


def _line(run: _Run, line: str) -> bytes:
    """A line behind its perplexity; an empty one has none."""
    scored = run.score(line, "scoring", run.top or 0) if line else Score((), (), 0, ())
    if run.as_json:
        return json_line(score_record(run.lm, scored, {"text": line}, top=run.top is not None))
    return f"{sortable(scored.perplexity)}\t{line}\n".encode()


def _choose(run: _Run, prompt: str, choices: list[str]) -> None:
    """The choices behind how probable they are."""
    chosen = run.choose(prompt, choices)
    run.activity.close()
    if run.as_json:
        run.sink.write(json_line(choices_record(run.lm, chosen, {"prompt": prompt})))
    else:
        run.sink.write(choice_lines(chosen, run.sink.is_terminal))


def _chosen_line(run: _Run, form: str, choices: list[str], line: str) -> bytes:
    """A line behind its likeliest choice and how probable that is; there is none behind nothing."""
    prompt = form.replace(_PLACE, line)
    chosen = run.choose(prompt, choices) if prompt else ()
    if run.as_json:
        return json_line(choices_record(run.lm, chosen, {"text": line, "prompt": prompt}))
    probability, best = (chosen[0].probability, chosen[0].text) if chosen else (math.nan, "")
    return f"{sortable(probability)}\t{best}\t{line}\n".encode()


def _choices(given: list[str] | None) -> list[str]:
    """The choices between the commas; quotes keep one that has a comma together. Raises UsageError."""
    try:
        rows = [row for option in given or () for row in csv.reader([argument_text(option)], strict=True)]
    except csv.Error:
        raise UsageError(
            "the choices have a quote that is not closed, or a newline outside of quotes",
            hint='double the quotes within quotes: --choices \'"so-called ""tests""",b\'',
        ) from None
    choices = [choice for row in rows for choice in row]
    if given:
        check_choices(choices)
    return choices


def _check_together(given: dict[str, object]) -> None:
    """Raises UsageError for options that mean nothing together."""
    excluding = [("--choices", name) for name in ("--stride", "--top", "--html or --svg")]
    excluding.append(("--lines", "--html or --svg"))
    for one, other in excluding:
        if given[one] and given[other]:
            raise UsageError(f"{one} and {other} exclude each other")
    if given["--prompt"] and not given["--choices"]:
        raise UsageError("--prompt needs --choices")
    if given["--lines"] and given["--top"] and not given["--json"]:
        raise UsageError("--lines with --top needs --json")


def _sources(files: list[Path] | None) -> list[Path]:
    """Where the texts are; raises before a model is loaded for nothing."""
    if not files and sys.stdin is not None and sys.stdin.isatty():
        raise UsageError("there is nothing to score", hint="name a file, or use a pipe: printf text | gptcli score")
    if files and list(map(str, files)).count("-") > 1:
        raise UsageError("stdin can be read once")
    for file in files or ():
        if str(file) != "-" and not file.exists():
            raise InputError(f"cannot open: {file}: No such file or directory")
    return files or [Path("-")]
