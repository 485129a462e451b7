"""`gptcli generate`: continues a prompt and streams what comes."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from types import FrameType
from typing import Any

from gptcli.cli import options
from gptcli.cli.prompt import argument_text, read_prompt, read_text
from gptcli.cli.render import Activity, print_line, stats_line
from gptcli.cli.sink import Sink
from gptcli.errors import UsageError
from gptcli.generation.events import Finished, StepLogprobs, TextDelta, TokenLogprob
from gptcli.language_model import LanguageModel
from gptcli.settings import RuntimeConfig, SamplingConfig, StopConfig
from gptcli.store.catalog import DEFAULT_MODEL
from gptcli.text.chat_template import ChatTemplate
from gptcli.text.conversation import Message


def generate(
    prompt: options.Prompt = None,
    model: options.Model = DEFAULT_MODEL,
    device: options.Device = "auto",
    dtype: options.DtypeOption = "auto",
    quantize: options.QuantizeOption = "auto",
    ctx_size: options.CtxSize = None,
    threads: options.Threads = None,
    offline: options.Offline = False,
    file: options.File = None,
    chat: options.Chat = False,
    system: options.System = None,
    system_file: options.SystemFile = None,
    chat_template: options.ChatTemplateFile = None,
    special: options.Special = False,
    errors: options.Errors = "strict",
    max_input: options.MaxInput = options.MAX_INPUT,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    repeat_penalty: options.RepeatPenalty = None,
    repeat_last_n: options.RepeatLastN = None,
    presence_penalty: options.PresencePenalty = None,
    frequency_penalty: options.FrequencyPenalty = None,
    logit_bias: options.LogitBias = None,
    seed: options.Seed = None,
    samples: options.Samples = 1,
    max_tokens: options.MaxTokens = options.DEFAULT_MAX_TOKENS,
    stop: options.Stop = None,
    ignore_eos: options.IgnoreEos = False,
    overflow: options.OverflowOption = options.DEFAULT_OVERFLOW,
    echo: options.Echo = False,
    newline: options.Newline = False,
    markdown: options.Markdown = False,
    as_json: options.Json = False,
    logprobs: options.Logprobs = None,
    stats: options.Stats = False,
    stats_json: options.StatsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Continue a prompt: one-shot text, streamed as it is decoded."""
    given = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repeat_penalty": repeat_penalty,
        "repeat_last_n": repeat_last_n,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "logit_bias": options.parse_logit_bias(logit_bias),
        "seed": seed,
    }
    SamplingConfig.resolve(given, {})  # a bad value fails before anything is read
    stopping = StopConfig(
        max_tokens=max_tokens,
        strings=tuple(map(argument_text, stop or ())),
        ignore_eos=ignore_eos,
        overflow=overflow,
    )
    runtime = RuntimeConfig(device=device, dtype=dtype, quantize=quantize, ctx_size=ctx_size, threads=threads)
    if not chat and (system or system_file or chat_template):
        raise UsageError("--system, --system-file and --chat-template need --chat")
    if system and system_file:
        raise UsageError("--system and --system-file exclude each other")
    if logprobs is not None and not as_json:
        raise UsageError("--logprobs needs --json")
    if markdown and as_json:
        raise UsageError("--markdown and --json exclude each other")
    text = read_prompt(prompt, file, errors, max_input)
    system_text = read_text(system_file, errors, max_input) if system_file else system and argument_text(system)

    sink = Sink()
    with Activity(quiet=quiet) as activity:
        lm = LanguageModel.open(model, runtime, offline=offline, on_fetch=activity.bytes)
        if chat:
            template = ChatTemplate.from_file(chat_template) if chat_template else lm.template
            messages = [Message("system", system_text)] if system_text else []
            ids = template.render([*messages, Message("user", text)], lm.tokenizer)
        else:
            ids = lm.tokenizer.encode(text, special=special)
        lm.check_prompt(ids)
        sampling = SamplingConfig.resolve(given, lm.sampling_defaults)
        engine = lm.load(partial(activity.bytes, f"loading {lm.folder.path.name}"))
        cache = engine.new_cache()
        lead = text.encode() if echo else b""
        for sample in range(samples):
            if sample and sampling.seed is not None:
                sampling = replace(sampling, seed=(sampling.seed + 1) % 2**64)
            with _interruptible() as cancelled:
                events = lm.stream(
                    ids,
                    sampling,
                    stopping,
                    cache=cache,
                    logprobs=logprobs,
                    on_prefill=partial(activity.tokens, "prefill"),
                    cancelled=cancelled,
                )
                if as_json:
                    parts = [lead]
                    finished = _drain(events, activity, parts.append)
                    record = _record(lm, b"".join(parts), finished, sampling, stopping)
                    sink.write(_json_line(record))
                elif markdown and sink.is_terminal:
                    from gptcli.cli.markdown import MarkdownStream

                    with MarkdownStream() as stream:
                        stream.write(lead.decode())
                        finished = _drain(events, activity, lambda data: stream.write(data.decode("utf-8", "replace")))
                else:
                    sink.write(lead)
                    finished = _drain(events, activity, sink.write)
                    # Between samples, and on a terminal, a line must end; a script asks for it.
                    if newline or sink.is_terminal or sample + 1 < samples:
                        sink.end_line()
            if stats_json:
                print_line(json.dumps(_stats(finished)))
            elif stats:
                print_line(stats_line(finished, lm.ctx_size))
            if finished.reason == "interrupt":
                raise KeyboardInterrupt


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C within the block only sets what is yielded, so that the text so far is kept; a second one interrupts."""
    pressed = False

    def press(signum: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:  # started in the background by a shell that wants it so
        yield lambda: False
        return
    signal.signal(signal.SIGINT, press)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _drain(events: Iterator[TextDelta | Finished], activity: Activity, write: Callable[[bytes], object]) -> Finished:
    """Writes the text of a generation and returns how it ended."""
    for event in events:
        activity.close()
        if isinstance(event, Finished):
            return event
        write(event.data)
    raise AssertionError("a generation ended without Finished")


def _json_line(record: dict[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def _record(
    lm: LanguageModel, text: bytes, finished: Finished, sampling: SamplingConfig, stopping: StopConfig
) -> dict[str, Any]:
    """One sample as the contract's JSON object."""
    plan = lm.engine.plan
    settings = {
        **asdict(replace(sampling, seed=finished.seed)),
        "max_tokens": stopping.max_tokens,
        "stop": stopping.strings,
        "ignore_eos": stopping.ignore_eos,
        "overflow": stopping.overflow,
        "device": str(plan.device),
        "dtype": plan.dtype_name,
        "quantize": lm.runtime.quantize,
        "ctx_size": lm.ctx_size,
    }
    record = {
        "model": lm.name,
        "prompt_tokens": finished.usage.prompt_tokens,
        "completion_tokens": finished.usage.completion_tokens,
        "ids": finished.ids,
        "text": text.decode("utf-8", "replace"),
        "finish_reason": finished.reason,
        "stop": finished.stop,
        "seed": finished.seed,
        "settings": settings,
        "timings": _timings(finished),
    }
    if finished.logprobs is not None:
        record["logprobs"] = [_step_record(step) for step in finished.logprobs]
    return record


def _timings(finished: Finished) -> dict[str, float]:
    counts = ("prompt_tokens", "completion_tokens")
    return {name: value for name, value in asdict(finished.usage).items() if name not in counts}


def _stats(finished: Finished) -> dict[str, Any]:
    """What `--stats=json` says of one sample."""
    return {
        **asdict(finished.usage),
        "finish_reason": finished.reason,
        "stop": finished.stop,
        "seed": finished.seed,
    }


def _step_record(step: StepLogprobs) -> dict[str, Any]:
    return {**_token_record(step.chosen), "top": [_token_record(token) for token in step.top]}


def _token_record(token: TokenLogprob) -> dict[str, Any]:
    return {
        "id": token.id,
        "token": token.data.decode("utf-8", "replace"),
        "bytes": token.data.hex(),
        "logprob": token.logprob,
    }
