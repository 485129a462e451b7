"""`gptcli score`: how probable texts, lines, tokens and continuations are."""

from __future__ import annotations

import csv
import math
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from gptcli.cli import options
from gptcli.cli.json_records import choices_record, json_line, score_record
from gptcli.cli.parsing.option_groups import only, option_group, panel, with_option_groups, without
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
from gptcli.cli.prompt_input import LINE, Decoding, argument_text, blocks_of_lines, read_prompt, read_text, unless_dash
from gptcli.cli.run_options import RunOptions, load_model, note_doubled_bos
from gptcli.cli.terminal.signals import deadly
from gptcli.cli.terminal.stderr import ProgressLine
from gptcli.cli.terminal.stdout import StdoutSink
from gptcli.errors import InputError, UsageError
from gptcli.generation.request_checks import check_choices, check_scoring
from gptcli.generation.score_result import ChoiceScore, Score
from gptcli.language_model import LanguageModel
from gptcli.models.catalog import DEFAULT_MODEL
from gptcli.runtime.engine import PromptCache, Workload

_HEAD = 256  # characters of a text, more than the longest name of a control token
_CARRIAGE_RETURN = re.compile(r"\r(?!\n)")

_what_option = panel("What")

Files = Annotated[list[Path] | None, typer.Argument(metavar="FILE", help="Texts to score; `-`, or none, is stdin.")]


@option_group
class ScoreOptions:
    """The parts of a text that are scored, and how."""

    stride: Annotated[
        int | None,
        _what_option(
            "Tokens that each further window of a long text scores. (default: 7/8 of the context)", metavar="N"
        ),
    ] = None
    lines: Annotated[bool, _what_option("Score each line by itself, as it comes: FIGURE TAB LINE.", "--lines")] = False
    choices: Annotated[
        list[str] | None,
        _what_option(
            'Compare what may continue the prompt. Repeatable; "a, b" in quotes may have a comma.',
            metavar="A,B,...",
        ),
    ] = None
    prompt: Annotated[
        str | None,
        _what_option(
            "What the choices continue, after the text of a file or pipe; with --lines, {} is the line.", metavar="TEXT"
        ),
    ] = None
    top: Annotated[int | None, _what_option("A line a token, with the N likeliest.", min=0, metavar="N")] = None


@with_option_groups
def score(
    files: Files = None,
    *,
    model: options.Model = DEFAULT_MODEL,
    runtime: Annotated[options.RuntimeOptions, without("speculate", "draft_model")],
    what: ScoreOptions,
    prompts: Annotated[options.PromptOptions, only("special", "errors", "max_input")],
    output: Annotated[options.OutputOptions, only("as_json", "html", "svg", "quiet")],
) -> None:
    """Score texts: log-probability of every token, perplexity, bits a byte; or what may continue one."""
    run = RunOptions(model=model, runtime=runtime, prompts=prompts, output=output)
    check_scoring(what.stride, what.top or 0)
    choices = _choices(what.choices)
    pictures = PictureFiles(output.html, output.svg, files or ())
    _check_together(what, output, choices, pictures)
    asked, sources = "", list[Path]()
    if choices and not what.lines:
        if files and len(files) > 1:
            raise UsageError("--choices continue one text; --lines takes each line for one")
        asked = read_prompt(what.prompt, files[0] if files else None, run.decoding)
    else:
        sources = _sources(files)

    sink = StdoutSink()
    with ProgressLine(quiet=output.quiet) as activity, run.open_model(activity, Workload()) as lm:
        check_scoring(what.stride, what.top or 0, lm.longest_stride)
        load_model(lm, activity)
        scorer = _Scorer(run, what, lm, PromptCache(), sink, activity)
        if asked:
            scorer.write_choices(asked, choices)
        elif what.lines:
            for source in sources:
                for lines in blocks_of_lines(source, scorer.decoding, prompts.max_input):
                    activity.close()  # the answers to lines show the progress
                    for answer in scorer.chosen_lines(lines, choices) if choices else scorer.scored_lines(lines):
                        sink.write(answer)
        else:
            scorer.write_texts(sources, pictures)


@dataclass(frozen=True)
class _Scorer:
    """Scores texts with a loaded model, and writes the scores."""

    run: RunOptions
    what: ScoreOptions
    lm: LanguageModel
    cache: PromptCache
    sink: StdoutSink
    activity: ProgressLine
    noted: list[str] = field(default_factory=list)

    @property
    def decoding(self) -> Decoding:
        """How texts are read beside the progress line."""
        return replace(self.run.decoding, note=self.activity.note)

    def write_texts(self, sources: list[Path], pictures: PictureFiles) -> None:
        """Writes each text's figures, tokens or shades, and draws a picture of them all."""
        top, as_json = self.what.top, self.run.output.as_json
        shown = ScoreDisplay(self.sink, several=len(sources) > 1) if self.sink.is_terminal and not as_json else None
        for source in sources:
            name = str(source)
            text = read_text(unless_dash(source), self.decoding)
            if not text:
                raise UsageError(f"there is nothing to score: {name}: it is empty")
            scored = self._score(text, f"scoring {name}", pictures.alternatives if top is None else top)
            self.activity.close()
            tokens = scored_tokens(scored, self.lm.tokenizer)
            pictures.add(name if len(sources) > 1 else "", tokens, score_figures(scored))
            if as_json:
                self.sink.write(json_line(score_record(self.lm, scored, {"file": name}, top=top is not None)))
            elif shown:
                shown.show(name, tokens, scored, with_alternatives=top is not None)
            else:
                self.sink.write(score_line(scored, name) if top is None else token_lines(tokens))
        pictures.write(f"{self.lm.name} · how probable each token is")

    def write_choices(self, prompt: str, choices: list[str]) -> None:
        """Writes the choices, each after its probability."""
        chosen = self._choose(prompt, choices)
        self.activity.close()
        if self.run.output.as_json:
            self.sink.write(json_line(choices_record(self.lm, chosen, {"prompt": prompt})))
        else:
            self.sink.write(choice_lines(chosen, self.sink.is_terminal))

    def scored_lines(self, lines: list[str]) -> Iterator[bytes]:
        """Each line after its perplexity; an empty one has none."""
        top, special = self.what.top, self.run.prompts.special
        scores = self.lm.score_many(self._noted(lines), stride=self.what.stride, top=top or 0, special=special)
        for line in lines:
            scored = next(scores) if line else Score((), (), 0, ())
            if self.run.output.as_json:
                yield json_line(score_record(self.lm, scored, {"text": line}, top=top is not None))
            else:
                yield f"{sortable(scored.perplexity)}\t{line}\n".encode()

    def chosen_lines(self, lines: list[str], choices: list[str]) -> Iterator[bytes]:
        """Each line after its likeliest choice; an empty one has none."""
        prompts = [_prompt_form(self.what).replace(LINE, line) for line in lines]
        answers = self.lm.choose_many(self._noted(prompts), choices, special=self.run.prompts.special)
        for line, prompt in zip(lines, prompts, strict=True):
            chosen = next(answers) if prompt else ()
            if self.run.output.as_json:
                yield json_line(choices_record(self.lm, chosen, {"text": line, "prompt": prompt}))
                continue
            probability, best = (chosen[0].probability, chosen[0].text) if chosen else (math.nan, "")
            yield f"{sortable(probability)}\t{best}\t{line}\n".encode()

    def _noted(self, texts: list[str]) -> Iterator[str]:
        """The texts that are not empty, after notes on them."""
        for text in filter(None, texts):
            self._note_doubled_bos(text)
            yield text

    def _note_doubled_bos(self, text: str) -> None:
        """Notes once that a text begins with BOS and gets another, which only --special can spell."""
        if self.run.prompts.special and not self.noted:
            ids = self.lm.tokenizer.encode(text[:_HEAD], special=True)
            note_doubled_bos(self.lm, ids, self.noted.append)
            for note in self.noted:
                self.activity.note(note)

    def _score(self, text: str, doing: str, top: int) -> Score:
        self._note_doubled_bos(text)
        with deadly(self.activity.erase):
            return self.lm.score(
                text,
                stride=self.what.stride,
                top=top,
                special=self.run.prompts.special,
                cache=self.cache,
                on_progress=partial(self.activity.tokens, doing),
            )

    def _choose(self, prompt: str, choices: list[str]) -> tuple[ChoiceScore, ...]:
        self._note_doubled_bos(prompt)
        with deadly(self.activity.erase):
            return self.lm.choose(prompt, choices, special=self.run.prompts.special, cache=self.cache)


def _prompt_form(what: ScoreOptions) -> str:
    """The prompt of a line's choices, with `{}` for the line."""
    return LINE if what.prompt is None else argument_text(what.prompt)


def _choices(given: list[str] | None) -> list[str]:
    """The choices between commas; one in quotes may contain commas. Raises UsageError."""
    try:
        # csv would end a line at a lone carriage return: NUL, which no argument contains, stands for it.
        texts = [_CARRIAGE_RETURN.sub("\0", argument_text(option)) for option in given or ()]
        rows = [row for text in texts for row in csv.reader([text], strict=True)]
    except csv.Error:
        raise UsageError(
            "the choices have a quote that is not closed, or a newline outside of quotes",
            hint='double the quotes within quotes: --choices \'"so-called ""tests""",b\'',
        ) from None
    choices = [choice.replace("\0", "\r") for row in rows for choice in row]
    if given:
        check_choices(choices)
    return choices


def _check_together(
    what: ScoreOptions, output: options.OutputOptions, choices: list[str], pictures: PictureFiles
) -> None:
    """Raises UsageError for options that mean nothing together."""
    excluded = {"--stride": what.stride is not None, "--top": what.top is not None, "--html or --svg": pictures.wanted}
    for name, given in excluded.items():
        if choices and given:
            raise UsageError(f"--choices and {name} exclude each other")
    if what.lines and pictures.wanted:
        raise UsageError("--lines and --html or --svg exclude each other")
    if what.prompt is not None and not choices:
        raise UsageError("--prompt needs --choices")
    if what.lines and what.top is not None and not output.as_json:
        raise UsageError("--lines with --top needs --json")
    if what.lines and LINE not in _prompt_form(what):
        raise UsageError(f"with --lines, --prompt must have {LINE} where the line goes")


def _sources(files: list[Path] | None) -> list[Path]:
    """The files of the texts. Raises UsageError or InputError, before a model is loaded."""
    if not files and sys.stdin is not None and sys.stdin.isatty():
        raise UsageError("there is nothing to score", hint="name a file, or use a pipe: printf text | gptcli score")
    if files and list(map(str, files)).count("-") > 1:
        raise UsageError("stdin can be read once")
    for file in files or ():
        if str(file) != "-" and not os.path.exists(file):
            raise InputError(f"cannot open: {file}: No such file or directory")
    return files or [Path("-")]
