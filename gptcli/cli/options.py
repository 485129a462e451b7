"""Every option of more than one command, defined once: in groups that commands get as records, or by itself.

A group's record holds what was typed; its methods turn that into the records of `settings.py`, which check ranges.
"""

from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from gptcli.cli.option_groups import option_group
from gptcli.cli.prompt_input import DecodingErrors, argument_text
from gptcli.errors import UsageError
from gptcli.models.catalog import DEFAULT_MODEL, local_models
from gptcli.settings import (
    ID_LISTS,
    ChatSettings,
    Dtype,
    Overflow,
    Quantize,
    ReasoningEffort,
    RuntimeConfig,
    SamplingConfig,
    StopConfig,
    parse_ids,
    parse_logit_bias,
    parse_words,
)

MAX_INPUT = 16 << 20  # bytes

_SAMPLING, _STOPPING = SamplingConfig(), StopConfig()

_model_option = partial(typer.Option, rich_help_panel="Model")
_prompt_option = partial(typer.Option, rich_help_panel="Prompt")
_sampling_option = partial(typer.Option, rich_help_panel="Sampling")
_stop_option = partial(typer.Option, rich_help_panel="Stopping")
_output_option = partial(typer.Option, rich_help_panel="Output")


def model_names() -> list[str]:
    """What a shell offers to complete a model's name with."""
    return [model.name for model in local_models()]


def _else(value: float) -> str:
    return f"(default: the model's, else {value:g})"


_model_name = partial(_model_option, "-m", "--model", envvar="GPTCLI_MODEL", autocompletion=model_names)
Model = Annotated[str, _model_name(help="A directory, a GGUF file, or a name that `gptcli models` lists.")]
ChatModel = Annotated[
    str | None,
    _model_name(
        help="A directory, a GGUF file, or a name that `gptcli models` lists. "
        f"(default: the session's, else {DEFAULT_MODEL})"
    ),
]
TokenizerModel = Annotated[
    str, _model_name(help="A directory, a GGUF file, a tokenizer.json, or a name that `gptcli models` lists.")
]
Offline = Annotated[bool, _model_option("--offline", help="Never fetch the default model.")]


@option_group
class RuntimeOptions:
    """Where and how a model runs."""

    device: Annotated[str, _model_option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto"
    dtype: Annotated[Dtype, _model_option("--dtype", help="Least precision of the computation.")] = "auto"
    quantize: Annotated[
        Quantize, _model_option("--quantize", help="Precision the weights are kept in; auto: as stored.")
    ] = "auto"
    ctx_size: Annotated[
        int | None, _model_option("-c", "--ctx-size", help="Context in tokens. (default: the model's)")
    ] = None
    threads: Annotated[int | None, _model_option("--threads", help="CPU threads. (default: one a core)")] = None
    speculate: Annotated[
        int,
        _model_option(
            "--speculate",
            metavar="N",
            help="Draft up to N tokens a step, from the text itself or with --draft-model: "
            "the same text, often faster.",
        ),
    ] = 0
    draft_model: Annotated[
        str | None,
        _model_option(
            "--draft-model",
            metavar="NAME",
            autocompletion=model_names,
            help="Draft with a smaller model that has the same tokenizer: the same text, often faster.",
        ),
    ] = None
    offline: Offline = False

    def config(self) -> RuntimeConfig:
        """Raises UsageError for a value out of range."""
        return RuntimeConfig(**{field.name: getattr(self, field.name) for field in fields(RuntimeConfig)})


Prompt = Annotated[
    str | None,
    typer.Argument(metavar="PROMPT", help="The text; `-` reads stdin. Piped stdin comes first, then a blank line."),
]
ChatTemplateFile = Annotated[
    Path | None,
    _prompt_option(
        "--chat-template",
        metavar="FILE|NAME",
        readable=False,
        help="A file with a Jinja template, or one of the model's own by its name.",
    ),
]
Errors = Annotated[DecodingErrors, _prompt_option("--errors", help="What to do about input that is not UTF-8.")]


@option_group
class PromptOptions:
    """Where a prompt comes from, how its bytes are read, and what is made of it."""

    file: Annotated[
        Path | None, _prompt_option("-f", "--file", readable=False, help="Take the prompt from a file.")
    ] = None
    chat: Annotated[bool, _prompt_option("--chat", help="Ask it as a user's turn in the model's chat template.")] = (
        False
    )
    system: Annotated[str | None, _prompt_option("--system", help="System message, with --chat.")] = None
    system_file: Annotated[
        Path | None, _prompt_option("--system-file", readable=False, help="System message from a file.")
    ] = None
    chat_template: ChatTemplateFile = None
    special: Annotated[
        bool, _prompt_option("--special", help="Read control tokens such as <|im_end|> in the prompt.")
    ] = False
    thinking: Annotated[
        bool | None,
        _prompt_option("--think/--no-think", help="Whether to think before answering, if the model can."),
    ] = None
    reasoning_effort: Annotated[
        ReasoningEffort | None,
        _prompt_option("--reasoning-effort", help="How much to think before answering, if the model can be told."),
    ] = None
    errors: Errors = "strict"
    max_input: Annotated[int, _prompt_option("--max-input", min=1, help="Largest input in bytes.")] = MAX_INPUT

    def __post_init__(self) -> None:
        if self.system is not None and self.system_file is not None:
            raise UsageError("--system and --system-file exclude each other")


@option_group
class SamplingOptions:
    """How tokens are drawn: an option for each field of SamplingConfig. None is the model's default, else ours."""

    temperature: Annotated[
        float | None,
        _sampling_option(
            "-t", "--temperature", help=f"Higher is more varied, 0 greedy. {_else(_SAMPLING.temperature)}"
        ),
    ] = None
    top_k: Annotated[
        int | None, _sampling_option("--top-k", help=f"Only the K likeliest; 0 is off. {_else(_SAMPLING.top_k)}")
    ] = None
    top_p: Annotated[
        float | None, _sampling_option("--top-p", help=f"Only the likeliest that sum to P. {_else(_SAMPLING.top_p)}")
    ] = None
    min_p: Annotated[
        float | None,
        _sampling_option(
            "--min-p", help=f"Only those at least P times as likely as the likeliest. {_else(_SAMPLING.min_p)}"
        ),
    ] = None
    repeat_penalty: Annotated[
        float | None,
        _sampling_option(
            "--repeat-penalty",
            help=f"Divides the logits of recent tokens; 1 is off. {_else(_SAMPLING.repeat_penalty)}",
        ),
    ] = None
    repeat_last_n: Annotated[
        int | None,
        _sampling_option(
            "--repeat-last-n", help=f"How many tokens are recent; -1 is all. (default: {_SAMPLING.repeat_last_n})"
        ),
    ] = None
    presence_penalty: Annotated[
        float | None,
        _sampling_option("--presence-penalty", help="Subtracted from each recent token's logit. (default: 0)"),
    ] = None
    frequency_penalty: Annotated[
        float | None, _sampling_option("--frequency-penalty", help="The same, once an occurrence. (default: 0)")
    ] = None
    logit_bias: Annotated[
        list[str] | None,
        _sampling_option("--logit-bias", metavar="ID=BIAS", help="Added to a token's logit. Repeatable."),
    ] = None
    suppress_tokens: Annotated[
        list[str] | None,
        _sampling_option(
            "--suppress-tokens",
            metavar="ID,...",
            help="Never draw these tokens; `none` for none. Repeatable. (default: the model's, else none)",
        ),
    ] = None
    begin_suppress_tokens: Annotated[
        list[str] | None,
        _sampling_option(
            "--begin-suppress-tokens",
            metavar="ID,...",
            help="Never draw these tokens first. Repeatable. (default: the model's, else none)",
        ),
    ] = None
    bad_words_ids: Annotated[
        list[str] | None,
        _sampling_option(
            "--bad-words-ids",
            metavar="ID,...",
            help="Never draw these tokens one after another; `none` for no such words. Repeatable, a word each. "
            "(default: the model's, else none)",
        ),
    ] = None
    no_repeat_ngram_size: Annotated[
        int | None,
        _sampling_option(
            "--no-repeat-ngram-size",
            metavar="N",
            help=f"Never say the same N tokens twice, the prompt's included; 0 is off. "
            f"{_else(_SAMPLING.no_repeat_ngram_size)}",
        ),
    ] = None
    seed: Annotated[int | None, _sampling_option("-s", "--seed", help="For the same text again. (default: random)")] = (
        None
    )

    def given(self) -> dict[str, Any]:
        """The values that an option gave, by the names of SamplingConfig's fields. Raises UsageError."""
        typed = {field.name: getattr(self, field.name) for field in fields(SamplingConfig)}
        typed["logit_bias"] = parse_logit_bias(self.logit_bias or ()) or None
        for name in ID_LISTS:
            typed[name] = parse_ids(name, typed[name]) if typed[name] else None
        typed["bad_words_ids"] = parse_words(self.bad_words_ids) if self.bad_words_ids else None
        return {name: value for name, value in typed.items() if value is not None}


Samples = Annotated[int, _sampling_option("--samples", min=1, help="How many texts; their seeds count up.")]
Stop = Annotated[list[str] | None, _stop_option("--stop", metavar="TEXT", help="End before this text. Repeatable.")]
IgnoreEos = Annotated[bool, _stop_option("--ignore-eos", help="Never draw a token that ends the text.")]


@option_group
class StopOptions:
    """When a text ends."""

    max_tokens: Annotated[int, _stop_option("-n", "--max-tokens", help="-1 is until the context is full.")] = (
        _STOPPING.max_tokens
    )
    stop: Stop = None
    ignore_eos: IgnoreEos = False
    overflow: Annotated[
        Overflow, _stop_option("--overflow", help="At the context's end: fail, stop, or forget the older half.")
    ] = _STOPPING.overflow

    def config(self) -> StopConfig:
        """Raises UsageError for a value out of range."""
        return StopConfig(
            max_tokens=self.max_tokens,
            strings=tuple(map(argument_text, self.stop or ())),
            ignore_eos=self.ignore_eos,
            overflow=self.overflow,
        )


@option_group
class ChatStopOptions:
    """When a reply ends. What is not given is the session's."""

    max_tokens: Annotated[
        int | None,
        _stop_option(
            "-n",
            "--max-tokens",
            help=f"Of a reply; -1 is until the context is full. (default: {ChatSettings().max_tokens})",
        ),
    ] = None
    stop: Stop = None
    ignore_eos: IgnoreEos = False
    overflow: Annotated[
        Overflow | None,
        _stop_option(
            "--overflow",
            help="When the conversation no longer fits: fail, stop, or (the default) shift: drop the oldest turns.",
        ),
    ] = None

    def given(self) -> dict[str, Any]:
        """The values that an option gave, by the names of ChatSettings' fields. Raises UsageError."""
        typed = {
            "max_tokens": self.max_tokens,
            "stop": tuple(map(argument_text, self.stop or ())) or None,
            "ignore_eos": self.ignore_eos or None,
            "overflow": self.overflow,
        }
        return {name: value for name, value in typed.items() if value is not None}


Json = Annotated[bool, _output_option("--json", help="One JSON object a line instead of text.")]
Color = Annotated[
    Literal["auto", "always", "never"],
    _output_option("--color", help="Colours: on a terminal unless NO_COLOR is set; or always."),
]
Quiet = Annotated[bool, _output_option("-q", "--quiet", help="Only errors on stderr.")]


@option_group
class OutputOptions:
    """What is written, and in which form."""

    echo: Annotated[bool, _output_option("--echo", help="Write the prompt first.")] = False
    newline: Annotated[bool, _output_option("--newline", help="End the output with a newline, in a pipe too.")] = False
    markdown: Annotated[bool, _output_option("--markdown", help="On a terminal, draw the text as Markdown.")] = False
    as_json: Json = False
    logprobs: Annotated[
        int | None,
        _output_option(
            "--logprobs",
            min=0,
            metavar="N",
            help="How probable each token is, and the N likeliest: shaded on a terminal, in --json, or in a picture.",
        ),
    ] = None
    explain: Annotated[
        bool,
        _output_option(
            "--explain",
            help="A line a token on stderr, or in --json: its rank, the entropy, what each sampling filter removed.",
        ),
    ] = False
    html: Annotated[
        Path | None, _output_option("--html", help="Write a page that shows how probable each token is.")
    ] = None
    svg: Annotated[
        Path | None, _output_option("--svg", help="Write a picture that shows how probable each token is.")
    ] = None
    prompt_report: Annotated[
        bool,
        _output_option(
            "--prompt-report",
            help="Generate nothing: show the exact prompt and tokens, what stops it, settings and memory.",
        ),
    ] = False
    stats: Annotated[bool, _output_option("--stats", help="A line of figures on stderr; --stats=json for scripts.")] = (
        False
    )
    stats_json: Annotated[bool, typer.Option("--stats-json", hidden=True)] = False
    quiet: Quiet = False
