"""`gptcli generate`: continues a prompt and streams what comes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from gptcli.cli import options
from gptcli.cli.prompt import argument_text, read_prompt, read_text
from gptcli.cli.records import json_line, sample_record, stats_record
from gptcli.cli.render import Activity, is_dumb_terminal, print_line, stats_line
from gptcli.cli.signals import deadly, interruptible
from gptcli.cli.sink import Sink
from gptcli.errors import UsageError
from gptcli.generation.events import Finished, TextDelta
from gptcli.language_model import LanguageModel
from gptcli.settings import RuntimeConfig, SamplingConfig, StopConfig, parse_logit_bias
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
    speculate: options.Speculate = 0,
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
        "logit_bias": parse_logit_bias(logit_bias or ()) or None,
        "seed": seed,
    }
    SamplingConfig.resolve(given, {})  # a bad value fails before anything is read
    stopping = StopConfig(
        max_tokens=max_tokens,
        strings=tuple(map(argument_text, stop or ())),
        ignore_eos=ignore_eos,
        overflow=overflow,
    )
    runtime = RuntimeConfig(
        device=device, dtype=dtype, quantize=quantize, ctx_size=ctx_size, threads=threads, speculate=speculate
    )
    if not chat and any(option is not None for option in (system, system_file, chat_template)):
        raise UsageError("--system, --system-file and --chat-template need --chat")
    if system is not None and system_file is not None:
        raise UsageError("--system and --system-file exclude each other")
    if logprobs is not None and not as_json:
        raise UsageError("--logprobs needs --json")
    if markdown and as_json:
        raise UsageError("--markdown and --json exclude each other")
    text = read_prompt(prompt, file, errors, max_input)
    system_text = None if system is None else argument_text(system)
    if system_file is not None:
        system_text = read_text(system_file, errors, max_input)

    sink = Sink()
    with Activity(quiet=quiet) as activity:
        lm = LanguageModel.open(model, runtime, offline=offline, on_fetch=activity.fetch)
        if chat:
            if chat_template is None:
                template = lm.template
            else:
                template = ChatTemplate(read_text(chat_template, "strict", max_input), str(chat_template))
            messages = [] if system_text is None else [Message("system", system_text)]
            ids = template.render([*messages, Message("user", text)], lm.tokenizer)
        else:
            ids = lm.tokenizer.encode(text, special=special)
        sampling = SamplingConfig.resolve(given, lm.sampling_defaults)
        lm.check_request(ids, sampling)
        loading = partial(activity.bytes, f"loading {lm.folder.path.name}")
        loading(0, 0)  # torch comes first, and takes a second
        with deadly(activity.erase):
            engine = lm.load(loading)
        cache = engine.new_cache()
        lead = text.encode() if echo else b""
        for sample in range(samples):
            with interruptible() as cancelled:
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
                    parts = list[bytes]()
                    finished = _drain(events, activity, lead, parts.append)
                    sink.write(json_line(sample_record(lm, b"".join(parts), finished, sampling, stopping)))
                else:
                    with _shown(sink, markdown) as write:
                        finished = _drain(events, activity, lead, write)
                    if newline or sample + 1 < samples:
                        sink.end_line()
            if stats_json and not quiet:
                print_line(json_line(stats_record(finished)).decode().rstrip())
            elif stats and not quiet:
                print_line(stats_line(finished, lm.ctx_size))
            if cancelled():
                raise KeyboardInterrupt
            sampling = replace(sampling, seed=(finished.seed + 1) % 2**64)


@contextlib.contextmanager
def _shown(sink: Sink, markdown: bool) -> Iterator[Callable[[bytes], object]]:
    """Yields what writes the text; on a terminal its last line ends, however the generation does."""
    if markdown and sink.is_terminal and not is_dumb_terminal():
        from gptcli.cli.markdown import MarkdownStream

        with MarkdownStream() as stream:
            yield lambda data: stream.write(data.decode("utf-8", "replace"))
        return
    try:
        yield sink.write
    finally:
        if sink.is_terminal:
            sink.end_line()


def _drain(
    events: Iterator[TextDelta | Finished], activity: Activity, lead: bytes, write: Callable[[bytes], object]
) -> Finished:
    """Writes the text of a generation, `lead` first, and returns how it ended."""
    finished = None
    for event in events:  # to the very end, where a session is put on disk
        activity.close()
        if lead:
            write(lead)
            lead = b""
        if isinstance(event, Finished):
            finished = event
        else:
            write(event.data)
    assert finished, "a generation ended without Finished"
    return finished
