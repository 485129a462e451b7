"""Every option of more than one command, defined once: in a group that commands take, or by itself.

A group has the typed values; its methods make the configs of `settings.py`, which check ranges.
"""

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from gptcli.cli.parsing.option_groups import option_group, panel
from gptcli.cli.prompt_input import Decoding, DecodingErrors, argument_text, read_text, unless_dash
from gptcli.errors import UsageError
from gptcli.models.catalog import DEFAULT_MODEL, local_models
from gptcli.settings import (
    ID_LISTS,
    ChatSettings,
    ConstraintConfig,
    Dtype,
    Kv,
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
from gptcli.text.chat_template import Switches
from gptcli.tools.definitions import checked_choice, parse_tools

MAX_INPUT = 16 << 20  # bytes

_SAMPLING, _STOPPING = SamplingConfig(), StopConfig()

_model_option, _prompt_option = panel("Model"), panel("Prompt")
_sampling_option, _stop_option, _output_option = panel("Sampling"), panel("Stopping"), panel("Output")
_constraint_option, _tool_option = panel("Constraint"), panel("Tools")


def model_names() -> list[str]:
    """The names that a shell completes a model's name with."""
    return [model.name for model in local_models()]


def _else(value: float) -> str:
    return f"(default: the model's, else {value:g})"


def _model_name(help: str) -> Any:
    return _model_option(help, "-m", "--model", envvar="GPTCLI_MODEL", autocompletion=model_names)


_NAMED = "or a name that `gptcli models` lists."
Model = Annotated[str, _model_name(f"A directory, a GGUF file, {_NAMED}")]
Models = Annotated[
    list[str] | None,
    _model_option(
        f"A directory, a GGUF file, {_NAMED} Repeatable. (default: GPTCLI_MODEL, else {DEFAULT_MODEL})",
        "-m",
        "--model",
        autocompletion=model_names,
    ),
]
ChatModel = Annotated[
    str | None, _model_name(f"A directory, a GGUF file, {_NAMED} (default: the session's, else {DEFAULT_MODEL})")
]
TokenizerModel = Annotated[str, _model_name(f"A directory, a GGUF file, a tokenizer.json, {_NAMED}")]
Offline = Annotated[bool, _model_option("Never fetch the default model.", "--offline")]


@option_group
class RuntimeOptions:
    """Where and how a model runs."""

    device: Annotated[
        str, _model_option("auto, cpu, cuda or cuda:N.", autocompletion=lambda: ["auto", "cpu", "cuda"])
    ] = "auto"
    dtype: Annotated[Dtype, _model_option("Lowest precision to compute in; auto: the checkpoint's.")] = "auto"
    quantize: Annotated[Quantize, _model_option("Precision to keep weights in; auto: as stored.")] = "auto"
    kv: Annotated[Kv, _model_option("How keys and values are kept; auto: fp16, or fp32 with --dtype fp32.")] = "auto"
    ctx_size: Annotated[int | None, _model_option("Context in tokens. (default: the model's)", "-c", "--ctx-size")] = (
        None
    )
    threads: Annotated[int | None, _model_option("CPU threads. (default: one a core)")] = None
    speculate: Annotated[
        int,
        _model_option(
            "Draft up to N tokens a step, from the text itself or with --draft-model: the same text, often faster.",
            metavar="N",
        ),
    ] = 0
    draft_model: Annotated[
        str | None,
        _model_option(
            "Draft with a smaller model that has the same tokenizer: the same text, often faster.",
            metavar="NAME",
            autocompletion=model_names,
        ),
    ] = None
    adapter: Annotated[
        list[str] | None,
        _model_option(
            "Put a LoRA adapter in PEFT's format on the model, perhaps with a factor. Repeatable.",
            metavar="DIR[=WEIGHT]",
        ),
    ] = None
    offline: Offline = False

    def config(self) -> RuntimeConfig:
        """Raises UsageError for a value out of range."""
        given = {field.name: getattr(self, field.name) for field in fields(RuntimeConfig)}
        return RuntimeConfig(**given | {"adapter": tuple(self.adapter or ())})


Prompt = Annotated[
    str | None,
    typer.Argument(metavar="PROMPT", help="The text; `-` reads stdin. Piped stdin comes first, then a blank line."),
]
ChatTemplateFile = Annotated[
    Path | None,
    _prompt_option(
        "A file with a Jinja template, or one of the model's own by its name.",
        metavar="FILE|NAME",
        readable=False,
    ),
]
Errors = Annotated[DecodingErrors, _prompt_option("What to do about input that is not UTF-8.")]


@option_group
class PromptOptions:
    """Where a prompt comes from, how its bytes are read, and how it is asked."""

    file: Annotated[Path | None, _prompt_option("Take the prompt from a file.", "-f", "--file", readable=False)] = None
    lines: Annotated[
        bool,
        _prompt_option(
            "Each line of the file or of stdin is a prompt; {} in PROMPT is the line. Implies --json.", "--lines"
        ),
    ] = False
    chat: Annotated[bool, _prompt_option("Ask it as a user's turn in the model's chat template.", "--chat")] = False
    system: Annotated[str | None, _prompt_option("System message of a chat.")] = None
    system_file: Annotated[Path | None, _prompt_option("System message from a file.", readable=False)] = None
    chat_template: ChatTemplateFile = None
    special: Annotated[bool, _prompt_option("Read control tokens such as <|im_end|> in the input.", "--special")] = (
        False
    )
    thinking: Annotated[
        bool | None, _prompt_option("Whether to think before answering, if the model can.", "--think/--no-think")
    ] = None
    reasoning_effort: Annotated[
        ReasoningEffort | None, _prompt_option("How much to think before answering, if the model can be told.")
    ] = None
    errors: Errors = "strict"
    max_input: Annotated[int, _prompt_option("Largest input in bytes.", min=1)] = MAX_INPUT

    def __post_init__(self) -> None:
        if self.system is not None and self.system_file is not None:
            raise UsageError("--system and --system-file exclude each other")

    @property
    def switches(self) -> Switches:
        """The chat template's switches, None where no option gave one."""
        return {"thinking": self.thinking, "reasoning_effort": self.reasoning_effort}


@option_group
class SamplingOptions:
    """How tokens are drawn: an option for each field of SamplingConfig. None is the model's default, else ours."""

    temperature: Annotated[
        float | None,
        _sampling_option(f"Higher is more varied, 0 greedy. {_else(_SAMPLING.temperature)}", "-t", "--temperature"),
    ] = None
    top_k: Annotated[int | None, _sampling_option(f"Only the K likeliest; 0 is off. {_else(_SAMPLING.top_k)}")] = None
    top_p: Annotated[float | None, _sampling_option(f"Only the likeliest that sum to P. {_else(_SAMPLING.top_p)}")] = (
        None
    )
    min_p: Annotated[
        float | None,
        _sampling_option(f"Only those at least P times as likely as the likeliest. {_else(_SAMPLING.min_p)}"),
    ] = None
    repeat_penalty: Annotated[
        float | None,
        _sampling_option(f"Divides the logits of recent tokens; 1 is off. {_else(_SAMPLING.repeat_penalty)}"),
    ] = None
    repeat_last_n: Annotated[
        int | None,
        _sampling_option(f"How many tokens are recent; -1 is all. (default: {_SAMPLING.repeat_last_n})"),
    ] = None
    presence_penalty: Annotated[
        float | None, _sampling_option("Subtracted from each recent token's logit. (default: 0)")
    ] = None
    frequency_penalty: Annotated[
        float | None, _sampling_option("Subtracted from a recent token's logit once per occurrence. (default: 0)")
    ] = None
    logit_bias: Annotated[
        list[str] | None, _sampling_option("Added to a token's logit. Repeatable.", metavar="ID=BIAS")
    ] = None
    suppress_tokens: Annotated[
        list[str] | None,
        _sampling_option(
            "Never draw these tokens; `none` for none. Repeatable. (default: the model's, else none)",
            metavar="ID,...",
        ),
    ] = None
    begin_suppress_tokens: Annotated[
        list[str] | None,
        _sampling_option(
            "Never draw these tokens first. Repeatable. (default: the model's, else none)", metavar="ID,..."
        ),
    ] = None
    bad_words_ids: Annotated[
        list[str] | None,
        _sampling_option(
            "Never draw these tokens one after another; `none` for no such words. Repeatable, a word each. "
            "(default: the model's, else none)",
            metavar="ID,...",
        ),
    ] = None
    no_repeat_ngram_size: Annotated[
        int | None,
        _sampling_option(
            f"Never say the same N tokens twice, the prompt's included; 0 is off. "
            f"{_else(_SAMPLING.no_repeat_ngram_size)}",
            metavar="N",
        ),
    ] = None
    seed: Annotated[
        int | None, _sampling_option("A seed brings the same text again. (default: random)", "-s", "--seed")
    ] = None

    def given(self) -> dict[str, Any]:
        """The values that an option gave, by the names of SamplingConfig's fields. Raises UsageError."""
        typed = {field.name: getattr(self, field.name) for field in fields(SamplingConfig)}
        typed["logit_bias"] = parse_logit_bias(self.logit_bias or ()) or None
        for name in ID_LISTS:
            typed[name] = parse_ids(name, typed[name]) if typed[name] else None
        typed["bad_words_ids"] = parse_words(self.bad_words_ids) if self.bad_words_ids else None
        return {name: value for name, value in typed.items() if value is not None}


Samples = Annotated[int, _sampling_option("How many texts; their seeds count up.", min=1)]
Stop = Annotated[list[str] | None, _stop_option("End before this text. Repeatable.", metavar="TEXT")]
IgnoreEos = Annotated[bool, _stop_option("Never draw a token that ends the text.", "--ignore-eos")]


@option_group
class StopOptions:
    """When a text ends."""

    max_tokens: Annotated[int, _stop_option("Most tokens; -1: until the context is full.", "-n", "--max-tokens")] = (
        _STOPPING.max_tokens
    )
    stop: Stop = None
    ignore_eos: IgnoreEos = False
    overflow: Annotated[Overflow, _stop_option("At the context's end: fail, stop, or forget the older half.")] = (
        _STOPPING.overflow
    )

    def config(self) -> StopConfig:
        """Raises UsageError for a value out of range."""
        strings = tuple(map(argument_text, self.stop or ()))
        return StopConfig(
            max_tokens=self.max_tokens, strings=strings, ignore_eos=self.ignore_eos, overflow=self.overflow
        )


@option_group
class ChatStopOptions:
    """When a reply ends. An option that is not given leaves the session's setting."""

    max_tokens: Annotated[
        int | None,
        _stop_option(
            f"Most tokens; -1: until the context is full. (default: {ChatSettings().max_tokens})",
            "-n",
            "--max-tokens",
        ),
    ] = None
    stop: Stop = None
    ignore_eos: IgnoreEos = False
    overflow: Annotated[
        Overflow | None,
        _stop_option(
            "When the conversation no longer fits: fail, stop, or (the default) shift: drop the oldest turns."
        ),
    ] = None

    def given(self) -> dict[str, Any]:
        """The values that an option gave, by the names of ChatSettings' fields. Raises UsageError."""
        typed = vars(self) | {"stop": tuple(map(argument_text, self.stop or ())), "ignore_eos": self.ignore_eos or None}
        return {name: value for name, value in typed.items() if value not in (None, ())}


@option_group
class ConstraintOptions:
    """What the text must be. They exclude each other."""

    json_schema: Annotated[
        str | None,
        _constraint_option("The text is JSON that this JSON schema accepts.", metavar="FILE|TEXT"),
    ] = None
    json_object: Annotated[bool, _constraint_option("The text is a JSON object.", "--json-object")] = False
    regex: Annotated[str | None, _constraint_option("The whole text matches this.", metavar="RE")] = None
    grammar: Annotated[
        Path | None,
        _constraint_option("The text is a sentence of this grammar, in Lark's notation or GBNF.", readable=False),
    ] = None
    choice: Annotated[list[str] | None, _constraint_option("The text is one of these. Repeatable.", metavar="TEXT")] = (
        None
    )

    def __post_init__(self) -> None:
        given = [f"--{name.replace('_', '-')}" for name, value in vars(self).items() if value not in (None, False)]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)} exclude each other")

    def given(self, decoding: Decoding) -> dict[str, Any]:
        """ConstraintConfig's fields if an option gave one, else nothing. Raises UsageError or InputError."""
        config = ConstraintConfig.resolve(
            {
                "json_schema": self._schema(decoding),
                "json_object": self.json_object,
                "regex": None if self.regex is None else argument_text(self.regex),
                "grammar": None if self.grammar is None else read_text(unless_dash(self.grammar), decoding),
                "choices": tuple(map(argument_text, self.choice or ())),
            }
        )
        return {} if config is None else vars(config)

    def _schema(self, decoding: Decoding) -> str | None:
        if self.json_schema is None:
            return None
        text = argument_text(self.json_schema)
        is_text = text.lstrip().startswith("{") or text in ("true", "false")
        return text if is_text else read_text(unless_dash(Path(text)), decoding)


@option_group
class ToolOptions:
    """The tools that a model may call. None is run: the text ends with the call."""

    tools: Annotated[
        Path | None, _tool_option("Tools of a chat that the model may call: JSON as in OpenAI's API.", readable=False)
    ] = None
    tool_choice: Annotated[
        str | None,
        _tool_option("auto, none, required, or the tool that must be called. (default: auto)", metavar="WORD|NAME"),
    ] = None

    def given(self, decoding: Decoding) -> dict[str, Any]:
        """The values that an option gave, by the names of ChatSettings' fields. Raises UsageError or InputError."""
        given: dict[str, Any] = {}
        if self.tools is not None:
            given["tools"] = parse_tools(read_text(unless_dash(self.tools), decoding), str(self.tools))
        if self.tool_choice is not None:
            given["tool_choice"] = argument_text(self.tool_choice)
            if self.tools is not None:
                checked_choice(given["tool_choice"], given["tools"])
        return given


Json = Annotated[bool, _output_option("One JSON object a line instead of text.", "--json")]
Color = Annotated[
    Literal["auto", "always", "never"],
    _output_option("Colours: on a terminal unless NO_COLOR is set; always; or never."),
]
Quiet = Annotated[bool, _output_option("Only errors on stderr.", "-q", "--quiet")]


@option_group
class OutputOptions:
    """What is written, and in which format."""

    echo: Annotated[bool, _output_option("Write the prompt first.", "--echo")] = False
    newline: Annotated[bool, _output_option("End the output with a newline, in a pipe too.", "--newline")] = False
    markdown: Annotated[bool, _output_option("On a terminal, draw the text as Markdown.", "--markdown")] = False
    as_json: Json = False
    logprobs: Annotated[
        int | None,
        _output_option(
            "How probable each token is, and the N likeliest: shaded on a terminal, in --json, or in a picture.",
            min=0,
            metavar="N",
        ),
    ] = None
    explain: Annotated[
        bool,
        _output_option(
            "A line a token on stderr, or in --json: its rank, the entropy, what each sampling filter removed.",
            "--explain",
        ),
    ] = False
    html: Annotated[Path | None, _output_option("Write a page that shows how probable each token is.")] = None
    svg: Annotated[Path | None, _output_option("Write a picture that shows how probable each token is.")] = None
    prompt_report: Annotated[
        bool,
        _output_option(
            "Generate nothing: show the exact prompt and tokens, what stops it, settings and memory.",
            "--prompt-report",
        ),
    ] = False
    stats: Annotated[bool, _output_option("A line of figures on stderr; --stats=json for scripts.", "--stats")] = False
    stats_json: Annotated[bool, typer.Option("--stats-json", hidden=True)] = False
    quiet: Quiet = False
