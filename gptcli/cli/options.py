"""Every option, defined once; commands pick what they need."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from gptcli.cli.prompt_input import DecodingErrors
from gptcli.models.catalog import DEFAULT_MODEL, local_models
from gptcli.settings import ChatSettings, Dtype, Overflow, Quantize, SamplingConfig, StopConfig

_MODEL, _PROMPT, _SAMPLING, _STOP, _OUTPUT = "Model", "Prompt", "Sampling", "Stopping", "Output"
_DEFAULT = SamplingConfig()

MAX_INPUT = 16 << 20


def model_names() -> list[str]:
    """What a shell offers to complete a model's name with."""
    return [model.name for model in local_models()]


def _default(value: float) -> str:
    return f"(default: the model's, else {value:g})"


Model = Annotated[
    str,
    typer.Option(
        "-m", "--model", envvar="GPTCLI_MODEL", autocompletion=model_names, rich_help_panel=_MODEL,
        help="A directory, or a name that `gptcli models` lists.",
    ),
]  # fmt: skip
ChatModel = Annotated[
    str | None,
    typer.Option(
        "-m", "--model", envvar="GPTCLI_MODEL", autocompletion=model_names, rich_help_panel=_MODEL,
        help=f"A directory, or a name that `gptcli models` lists. (default: the session's, else {DEFAULT_MODEL})",
    ),
]  # fmt: skip
TokenizerModel = Annotated[
    str,
    typer.Option(
        "-m", "--model", envvar="GPTCLI_MODEL", autocompletion=model_names, rich_help_panel=_MODEL,
        help="A directory, a tokenizer.json, or a name that `gptcli models` lists.",
    ),
]  # fmt: skip
Device = Annotated[str, typer.Option("--device", rich_help_panel=_MODEL, help="auto, cpu, cuda or cuda:N.")]
DtypeOption = Annotated[
    Dtype, typer.Option("--dtype", rich_help_panel=_MODEL, help="Least precision of the computation.")
]
QuantizeOption = Annotated[
    Quantize,
    typer.Option("--quantize", rich_help_panel=_MODEL, help="Precision the weights are kept in; auto: as stored."),
]
CtxSize = Annotated[
    int | None,
    typer.Option("-c", "--ctx-size", rich_help_panel=_MODEL, help="Context in tokens. (default: the model's)"),
]
Threads = Annotated[
    int | None, typer.Option("--threads", rich_help_panel=_MODEL, help="CPU threads. (default: one a core)")
]
Speculate = Annotated[
    int,
    typer.Option(
        "--speculate", metavar="N", rich_help_panel=_MODEL,
        help="Draft up to N tokens a step, from the text itself or with --draft-model: the same text, often faster.",
    ),
]  # fmt: skip
DraftModel = Annotated[
    str | None,
    typer.Option(
        "--draft-model", metavar="NAME", autocompletion=model_names, rich_help_panel=_MODEL,
        help="Draft with a smaller model that has the same tokenizer: the same text, often faster.",
    ),
]  # fmt: skip
Offline = Annotated[bool, typer.Option("--offline", rich_help_panel=_MODEL, help="Never fetch the default model.")]

Prompt = Annotated[
    str | None,
    typer.Argument(metavar="PROMPT", help="The text; `-` reads stdin. Piped stdin comes first, then a blank line."),
]
File = Annotated[
    Path | None,
    typer.Option("-f", "--file", readable=False, rich_help_panel=_PROMPT, help="Take the prompt from a file."),
]
Chat = Annotated[
    bool,
    typer.Option("--chat", rich_help_panel=_PROMPT, help="Ask it as a user's turn in the model's chat template."),
]
System = Annotated[str | None, typer.Option("--system", rich_help_panel=_PROMPT, help="System message, with --chat.")]
SystemFile = Annotated[
    Path | None,
    typer.Option("--system-file", readable=False, rich_help_panel=_PROMPT, help="System message from a file."),
]
ChatTemplateFile = Annotated[
    Path | None,
    typer.Option("--chat-template", readable=False, rich_help_panel=_PROMPT, help="A Jinja template for the model's."),
]
Special = Annotated[
    bool,
    typer.Option("--special", rich_help_panel=_PROMPT, help="Read control tokens such as <|im_end|> in the prompt."),
]
Errors = Annotated[
    DecodingErrors,
    typer.Option("--errors", rich_help_panel=_PROMPT, help="What to do about input that is not UTF-8."),
]
MaxInput = Annotated[int, typer.Option("--max-input", min=1, rich_help_panel=_PROMPT, help="Largest input in bytes.")]

Temperature = Annotated[
    float | None,
    typer.Option(
        "-t", "--temperature", rich_help_panel=_SAMPLING,
        help=f"Higher is more varied, 0 greedy. {_default(_DEFAULT.temperature)}",
    ),
]  # fmt: skip
TopK = Annotated[
    int | None,
    typer.Option(
        "--top-k", rich_help_panel=_SAMPLING, help=f"Only the K likeliest; 0 is off. {_default(_DEFAULT.top_k)}"
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        "--top-p", rich_help_panel=_SAMPLING, help=f"Only the likeliest that sum to P. {_default(_DEFAULT.top_p)}"
    ),
]
MinP = Annotated[
    float | None,
    typer.Option(
        "--min-p", rich_help_panel=_SAMPLING,
        help=f"Only those at least P times as likely as the likeliest. {_default(_DEFAULT.min_p)}",
    ),
]  # fmt: skip
RepeatPenalty = Annotated[
    float | None,
    typer.Option(
        "--repeat-penalty", rich_help_panel=_SAMPLING,
        help=f"Divides the logits of recent tokens; 1 is off. {_default(_DEFAULT.repeat_penalty)}",
    ),
]  # fmt: skip
RepeatLastN = Annotated[
    int | None,
    typer.Option(
        "--repeat-last-n", rich_help_panel=_SAMPLING,
        help=f"How many tokens are recent; -1 is all. (default: {_DEFAULT.repeat_last_n})",
    ),
]  # fmt: skip
PresencePenalty = Annotated[
    float | None,
    typer.Option(
        "--presence-penalty", rich_help_panel=_SAMPLING, help="Subtracted from each recent token's logit. (default: 0)"
    ),
]
FrequencyPenalty = Annotated[
    float | None,
    typer.Option("--frequency-penalty", rich_help_panel=_SAMPLING, help="The same, once an occurrence. (default: 0)"),
]
LogitBias = Annotated[
    list[str] | None,
    typer.Option(
        "--logit-bias", metavar="ID=BIAS", rich_help_panel=_SAMPLING, help="Added to a token's logit. Repeatable."
    ),
]
Seed = Annotated[
    int | None,
    typer.Option("-s", "--seed", rich_help_panel=_SAMPLING, help="For the same text again. (default: random)"),
]
Samples = Annotated[
    int,
    typer.Option("--samples", min=1, rich_help_panel=_SAMPLING, help="How many texts; their seeds count up."),
]

MaxTokens = Annotated[
    int,
    typer.Option("-n", "--max-tokens", rich_help_panel=_STOP, help="-1 is until the context is full."),
]
Stop = Annotated[
    list[str] | None,
    typer.Option("--stop", metavar="TEXT", rich_help_panel=_STOP, help="End before this text. Repeatable."),
]
IgnoreEos = Annotated[
    bool, typer.Option("--ignore-eos", rich_help_panel=_STOP, help="Never draw a token that ends the text.")
]
OverflowOption = Annotated[
    Overflow,
    typer.Option(
        "--overflow", rich_help_panel=_STOP, help="At the context's end: fail, stop, or forget the older half."
    ),
]

ChatMaxTokens = Annotated[
    int | None,
    typer.Option(
        "-n", "--max-tokens", rich_help_panel=_STOP,
        help=f"Of a reply; -1 is until the context is full. (default: {ChatSettings().max_tokens})",
    ),
]  # fmt: skip
ChatOverflow = Annotated[
    Overflow | None,
    typer.Option(
        "--overflow", rich_help_panel=_STOP,
        help="When the conversation no longer fits: fail, stop, or (the default) shift: drop the oldest turns.",
    ),
]  # fmt: skip
Thinking = Annotated[
    bool | None,
    typer.Option(
        "--think/--no-think", rich_help_panel=_PROMPT, help="Whether to think before answering, if the model can."
    ),
]

Echo = Annotated[bool, typer.Option("--echo", rich_help_panel=_OUTPUT, help="Write the prompt first.")]
Newline = Annotated[
    bool, typer.Option("--newline", rich_help_panel=_OUTPUT, help="End the output with a newline, in a pipe too.")
]
Markdown = Annotated[
    bool, typer.Option("--markdown", rich_help_panel=_OUTPUT, help="On a terminal, draw the text as Markdown.")
]
Json = Annotated[bool, typer.Option("--json", rich_help_panel=_OUTPUT, help="One JSON object a line instead of text.")]
Logprobs = Annotated[
    int | None,
    typer.Option(
        "--logprobs", min=0, metavar="N", rich_help_panel=_OUTPUT,
        help="How probable each token is, and the N likeliest: shaded on a terminal, in --json, or in a picture.",
    ),
]  # fmt: skip
Explain = Annotated[
    bool,
    typer.Option(
        "--explain", rich_help_panel=_OUTPUT,
        help="A line a token on stderr, or in --json: its rank, the entropy, what each sampling filter removed.",
    ),
]  # fmt: skip
Html = Annotated[
    Path | None,
    typer.Option("--html", rich_help_panel=_OUTPUT, help="Write a page that shows how probable each token is."),
]
Svg = Annotated[
    Path | None,
    typer.Option("--svg", rich_help_panel=_OUTPUT, help="Write a picture that shows how probable each token is."),
]
PromptReport = Annotated[
    bool,
    typer.Option(
        "--prompt-report", rich_help_panel=_OUTPUT,
        help="Generate nothing: show the exact prompt and tokens, what stops it, settings and memory.",
    ),
]  # fmt: skip
Stats = Annotated[
    bool,
    typer.Option("--stats", rich_help_panel=_OUTPUT, help="A line of figures on stderr; --stats=json for scripts."),
]
StatsJson = Annotated[bool, typer.Option("--stats-json", hidden=True)]
Color = Annotated[
    Literal["auto", "always", "never"],
    typer.Option("--color", rich_help_panel=_OUTPUT, help="Colours: on a terminal unless NO_COLOR is set; or always."),
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", rich_help_panel=_OUTPUT, help="Only errors on stderr.")]

DEFAULT_MAX_TOKENS = StopConfig().max_tokens
DEFAULT_OVERFLOW = StopConfig().overflow
