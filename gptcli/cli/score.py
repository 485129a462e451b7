"""`gptcli score`: how probable texts are, line by line or token by token, and which of several continuations is."""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptcli.cli import options
from gptcli.cli.pictures import Pictures
from gptcli.cli.prompt import DecodingErrors, argument_text, read_prompt, text_blocks, text_lines
from gptcli.cli.records import choices_record, json_line, score_record
from gptcli.cli.render import Activity
from gptcli.cli.score_view import ScoreView, choice_lines, figure, text_figures, token_lines
from gptcli.cli.shading import figures, of_score
from gptcli.cli.signals import deadly
from gptcli.cli.sink import Sink
from gptcli.errors import InputError, UsageError
from gptcli.generation.request import check_choices, check_scoring
from gptcli.generation.scores import ChoiceScore, Score
from gptcli.language_model import LanguageModel
from gptcli.settings import RuntimeConfig
from gptcli.store.catalog import DEFAULT_MODEL

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
class _Scorer:
    """A loaded model, and how it is to score."""

    lm: LanguageModel
    cache: KVCache
    stride: int | None
    top: int
    special: bool

    def score(self, text: str, activity: Activity, doing: str) -> Score:
        return self.lm.score(
            text,
            stride=self.stride,
            top=self.top,
            special=self.special,
            cache=self.cache,
            on_progress=partial(activity.tokens, doing),
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
    pictures = Pictures(html, svg)
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

    sink = Sink()
    with Activity(quiet=quiet) as activity:
        lm = LanguageModel.open(model, runtime, offline=offline, on_fetch=activity.fetch)
        check_scoring(stride, top or 0, lm.longest_stride)
        loading = partial(activity.bytes, f"loading {lm.folder.path.name}")
        loading(0, 0)
        with deadly(activity.erase):
            engine = lm.load(loading)
        alternatives = pictures.alternatives if top is None else top
        scorer = _Scorer(lm, engine.new_cache(), stride, alternatives, special)
        if asked:
            chosen = scorer.choose(asked, continuations)
            activity.close()
            record = choices_record(lm, chosen, {"prompt": asked})
            sink.write(json_line(record) if as_json else choice_lines(chosen, sink.is_terminal))
        elif lines:
            for source in sources:
                for line in text_lines(source, errors, max_input):
                    activity.close()  # lines may come slowly, and what comes of them is the progress
                    if continuations:
                        written = _chosen_line(scorer, form, continuations, line, as_json)
                    else:
                        written = _scored_line(scorer, line, activity, as_json, top is not None)
                    sink.write(written)
        else:
            shown = ScoreView(sink, several=len(sources) > 1) if sink.is_terminal and not as_json else None
            for name, text in _texts(sources, errors, max_input):
                scored = scorer.score(text, activity, f"scoring {name}")
                tokens = of_score(scored, lm.tokenizer)
                pictures.add(name if len(sources) > 1 else "", tokens, figures(scored))
                activity.close()
                if as_json:
                    sink.write(json_line(score_record(lm, scored, {"file": name}, top=top is not None)))
                elif shown:
                    shown.show(name, tokens, scored, with_alternatives=top is not None)
                else:
                    sink.write(text_figures(scored, name) if top is None else token_lines(tokens))
            if shown:
                shown.close()
            pictures.write(f"{lm.name} · how probable each token is")


def _choices(given: list[str] | None) -> list[str]:
    """The choices between the commas; quotes keep one that has a comma together."""
    choices = [choice for option in given or () for row in csv.reader([argument_text(option)]) for choice in row]
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
    for file in files or ():
        if str(file) != "-" and not file.exists():
            raise InputError(f"cannot open: {file}: No such file or directory")
    return files or [Path("-")]


def _texts(sources: list[Path], errors: DecodingErrors, max_input: int) -> Iterator[tuple[str, str]]:
    for source in sources:
        text = "".join(text_blocks(source, errors, max_input))
        if not text:
            raise UsageError(f"there is nothing to score: {source}: it is empty")
        yield str(source), text


def _scored_line(scorer: _Scorer, line: str, activity: Activity, as_json: bool, top: bool) -> bytes:
    """A line behind its figure; an empty one has none."""
    scored = scorer.score(line, activity, "scoring") if line else Score((), (), 0, ())
    if as_json:
        return json_line(score_record(scorer.lm, scored, {"text": line}, top=top))
    return f"{figure(scored.perplexity)}\t{line}\n".encode()


def _chosen_line(scorer: _Scorer, form: str, choices: list[str], line: str, as_json: bool) -> bytes:
    """A line behind its likeliest choice and how probable that is; there is none behind nothing."""
    prompt = form.replace(_PLACE, line)
    chosen = scorer.choose(prompt, choices) if prompt else ()
    if as_json:
        return json_line(choices_record(scorer.lm, chosen, {"text": line, "prompt": prompt}))
    probability, best = (chosen[0].probability, chosen[0].text) if chosen else (math.nan, "")
    return f"{figure(probability)}\t{best}\t{line}\n".encode()
