"""`gptcli generate`: continues a prompt and streams what comes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

from gptcli.cli import options
from gptcli.cli.json_records import json_line, sample_record, stats_record
from gptcli.cli.probabilities.picture_files import PictureFiles
from gptcli.cli.probabilities.sample_display import SampleDisplay
from gptcli.cli.prompt_input import argument_text, read_prompt, read_text
from gptcli.cli.terminal.capabilities import is_dumb_terminal
from gptcli.cli.terminal.signals import deadly, interruptible
from gptcli.cli.terminal.stderr import ProgressLine, note_failures, print_line, stats_line
from gptcli.cli.terminal.stdout import StdoutSink
from gptcli.errors import UsageError
from gptcli.generation.events import Finished, TextDelta
from gptcli.language_model import LanguageModel
from gptcli.models.catalog import DEFAULT_MODEL
from gptcli.settings import RuntimeConfig, SamplingConfig, StopConfig, parse_logit_bias
from gptcli.text.chat_template import ChatTemplate
from gptcli.text.messages import Message


def generate(
    prompt: options.Prompt = None,
    model: options.Model = DEFAULT_MODEL,
    device: options.Device = "auto",
    dtype: options.DtypeOption = "auto",
    quantize: options.QuantizeOption = "auto",
    ctx_size: options.CtxSize = None,
    threads: options.Threads = None,
    speculate: options.Speculate = 0,
    draft_model: options.DraftModel = None,
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
    explain: options.Explain = False,
    html: options.Html = None,
    svg: options.Svg = None,
    prompt_report: options.PromptReport = False,
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
    if draft_model is not None and samples > 1:
        raise UsageError("--draft-model is for one sample: several share every step already, and draft nothing")
    if not chat and any(option is not None for option in (system, system_file, chat_template)):
        raise UsageError("--system, --system-file and --chat-template need --chat")
    if system is not None and system_file is not None:
        raise UsageError("--system and --system-file exclude each other")
    if markdown and (as_json or logprobs is not None):
        raise UsageError(f"--markdown and {'--json' if as_json else '--logprobs'} exclude each other")
    pictures = PictureFiles(html, svg)
    text = read_prompt(prompt, file, errors, max_input)
    system_text = None if system is None else argument_text(system)
    if system_file is not None:
        system_text = read_text(system_file, errors, max_input)

    sink = StdoutSink()
    with ProgressLine(quiet=quiet) as activity:
        recorded = explain or logprobs is not None or pictures.wanted
        plain = samples == 1 and not recorded and draft_model is None and not prompt_report
        lm = LanguageModel.open(
            model, runtime, offline=offline, on_fetch=activity.fetch, one_text=max_tokens if plain else None
        )
        if draft_model is not None:
            lm.draft_with(
                LanguageModel.open(draft_model, runtime.for_draft_model(), offline=offline, on_fetch=activity.fetch)
            )
        if chat:
            if chat_template is None:
                template = lm.template
            else:
                template = ChatTemplate(read_text(chat_template, "strict", max_input), str(chat_template))
            messages = [] if system_text is None else [Message("system", system_text)]
            messages.append(Message("user", text))
            ids = template.render(messages, lm.tokenizer)
        else:
            ids = lm.tokenizer.encode(text, special=special)
        sampling = SamplingConfig.resolve(given, lm.sampling_defaults)
        if prompt_report:
            from gptcli.cli.prompt_report import print_prompt_report, raw_prompt, rendered_prompt
            from gptcli.cli.prompt_report import prompt_report as report_of

            activity.close()
            shown = rendered_prompt(lm, messages, template) if chat else raw_prompt(lm, text, special=special)
            print_prompt_report(
                lm, shown, report_of(lm, shown, given, sampling, stopping), as_json=as_json, quiet=quiet
            )
            return
        lm.check_request(ids, sampling)
        loading = partial(activity.bytes, f"loading {lm.folder.path.name}")
        loading(0, 0)  # torch comes first, where it has to, and takes a second
        with deadly(activity.erase):
            if plain:
                lm.load_for_one(-1 if max_tokens < 0 else len(ids) + max_tokens, loading)
            else:
                lm.load(loading)
        lead = text.encode() if echo else b""
        with interruptible() as cancelled:
            streams = lm.streams(
                ids,
                sampling.for_samples(samples),
                stopping,
                logprobs=pictures.alternatives if logprobs is None and pictures.wanted else logprobs,
                explain=explain,
                on_prefill=partial(activity.tokens, "prefill"),
                cancelled=cancelled,
            )
            for sample, events in enumerate(streams):
                views = SampleDisplay(
                    lm.tokenizer,
                    sink,
                    alternatives=None if as_json else logprobs,
                    explain=explain and not as_json and not quiet,
                )
                if as_json:
                    parts = list[bytes]()
                    finished = _drain(events, activity, lead, parts.append, views)
                    record = sample_record(
                        lm,
                        b"".join(parts),
                        finished,
                        sampling,
                        stopping,
                        logprobs=logprobs is not None,
                        explain=explain,
                    )
                    sink.write(json_line(record))
                else:
                    with _shown(sink, markdown, views) as write:
                        finished = _drain(events, activity, lead, write, views)
                    if newline or sample + 1 < samples:
                        sink.end_line()
                    views.close(finished)
                title = "" if samples == 1 else f"sample {sample + 1}, seed {finished.seed}"
                pictures.add(title, views.tokens, lead=f"{text}\n\n" if chat else text)
                if stats_json and not quiet:
                    print_line(json_line(stats_record(finished)).decode().rstrip())
                elif stats and not quiet:
                    print_line(stats_line(finished, lm.ctx_size))
        note_failures(() if quiet else lm.running.failures)
        pictures.write(f"{lm.name} · how probable each token is")
        if cancelled():
            raise KeyboardInterrupt
        lm.keep_copy()


@contextlib.contextmanager
def _shown(sink: StdoutSink, markdown: bool, views: SampleDisplay) -> Iterator[Callable[[bytes], object]]:
    """Yields what writes the text; on a terminal its last line ends, however the generation does."""
    if markdown and sink.is_terminal and not is_dumb_terminal():
        from gptcli.cli.terminal.markdown import MarkdownStream

        with MarkdownStream() as stream:
            yield lambda data: stream.write(data.decode("utf-8", "replace"))
        return
    try:
        yield sink.write
    finally:
        views.end_text()
        if sink.is_terminal:
            sink.end_line()


def _drain(
    events: Iterator[TextDelta | Finished],
    activity: ProgressLine,
    lead: bytes,
    write: Callable[[bytes], object],
    views: SampleDisplay,
) -> Finished:
    """Writes the text of a generation, `lead` first, and returns how it ended."""
    for event in events:
        activity.close()
        if lead:
            write(lead)
            lead = b""
        if isinstance(event, Finished):
            return event
        if not views.shaded:
            write(event.data)
        views.take(event)
    raise AssertionError("a generation ended without Finished")
