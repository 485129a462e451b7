"""`gptcli bench`: how fast a model runs here, and how near that is to what the memory allows."""

from __future__ import annotations

import time
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import psutil
import typer

from gptcli.cli import options
from gptcli.cli.json_records import json_line
from gptcli.cli.terminal.signals import deadly, interruptible
from gptcli.cli.terminal.stderr import ProgressLine, note_failures, size
from gptcli.cli.terminal.stdout import StdoutSink
from gptcli.cli.terminal.tables import print_records
from gptcli.errors import UsageError
from gptcli.language_model import LanguageModel
from gptcli.models.catalog import DEFAULT_MODEL
from gptcli.settings import RuntimeConfig

if TYPE_CHECKING:
    from gptcli.runtime.bench import Point

Lengths = Annotated[
    list[int] | None,
    typer.Option("-p", "--prompt-tokens", min=1, help="Length of the prompt. Repeatable. (default: 512)"),
]
DecodeTokens = Annotated[int, typer.Option("-n", "--decode-tokens", min=1, help="Tokens decoded behind it.")]
Repeats = Annotated[int, typer.Option("--repeats", min=1, help="Runs that the median is of.")]


def bench(
    model: options.Model = DEFAULT_MODEL,
    device: options.Device = "auto",
    dtype: options.DtypeOption = "auto",
    quantize: options.QuantizeOption = "auto",
    threads: options.Threads = None,
    offline: options.Offline = False,
    prompt_tokens: Lengths = None,
    decode_tokens: DecodeTokens = 64,
    repeats: Repeats = 5,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure prefill and decode: tokens a second, bytes a token, the share of this machine's memory bandwidth.

    benchmarks/compare_llama_cpp.py in the source tree puts it beside llama.cpp.
    """
    lengths = prompt_tokens or [512]
    runtime = RuntimeConfig(device=device, dtype=dtype, quantize=quantize, threads=threads)
    with ProgressLine(quiet=quiet) as activity:
        lm = LanguageModel.open(model, runtime, offline=offline, on_fetch=activity.fetch)
        if max(lengths) + decode_tokens > lm.ctx_size:
            raise UsageError(f"{max(lengths)} + {decode_tokens} tokens are beyond the context of {lm.ctx_size}")
        loading = partial(activity.bytes, f"loading {lm.folder.path.name}")
        loading(0, 0)
        with deadly(activity.erase):
            engine = lm.load(loading)
        engine.prefill([0], engine.new_cache())
        first_token_s = time.time() - psutil.Process().create_time()
    from gptcli.runtime.bench import measure, peak_device_memory, peak_memory, read_bandwidth

    points = []
    with interruptible() as cancelled:  # and no progress is drawn, which would take its time from what is measured
        for length in sorted(lengths):
            point = measure(engine, length, decode_tokens, repeats, cancelled)
            if point is None:
                raise KeyboardInterrupt
            points.append(point)
    peak, device_peak = peak_memory(), peak_device_memory(engine.plan.device)
    bandwidth = read_bandwidth(engine.plan.device)
    facts: dict[str, Any] = {
        "model": lm.name,
        "parameters": lm.folder.parameter_count,
        "device": str(engine.plan.device),
        "dtype": engine.plan.dtype_name,
        "quantize": quantize,
        "kernels": engine.kernels,
        "threads": engine.threads,
        "bytes_a_second": bandwidth,
        "load_s": engine.load_s,
        "first_token_s": first_token_s,
        "weight_bytes": lm.folder.weight_bytes,
        "peak_memory": peak,
    }
    if device_peak is not None:
        facts["peak_device_memory"] = device_peak
    note_failures(engine.failures)
    if as_json:
        StdoutSink().write(json_line(facts | {"lengths": [_record(point, bandwidth) for point in points]}))
        return
    print_records([{"": name, "value": value} for name, value in facts.items()], False, _fact_row, header=False)
    print_records([_row(_record(point, bandwidth)) for point in points], as_json=False)


def _record(point: Point, bandwidth: float) -> dict[str, Any]:
    moved = point.bytes_a_token * point.decode.median
    return {
        "prompt_tokens": point.prompt_tokens,
        "prefill_tokens_per_s": asdict(point.prefill),
        "decode_tokens_per_s": asdict(point.decode),
        "decode_ms": 1000 / point.decode.median,
        "bytes_a_token": point.bytes_a_token,
        "bytes_a_second": moved,
        "share_of_bandwidth": moved / bandwidth,
    }


def _fact_row(fact: dict[str, Any]) -> dict[str, str]:
    name, value = fact[""], fact["value"]
    if name in ("weight_bytes", "peak_memory", "peak_device_memory"):
        value = size(value)
    elif name == "bytes_a_second":
        value = f"{size(value)}/s read from memory"
    elif name.endswith("_s"):
        value = f"{value:.2f} s"
    elif name == "parameters":
        value = f"{value:,}"
    return {"": name, "value": str(value)}


def _row(record: dict[str, Any]) -> dict[str, str]:
    return {
        "prompt": str(record["prompt_tokens"]),
        "prefill tok/s": _spread(record["prefill_tokens_per_s"]),
        "decode tok/s": _spread(record["decode_tokens_per_s"]),
        "ms": f"{record['decode_ms']:.2f}",
        "a token": size(record["bytes_a_token"]),
        "GB/s": f"{record['bytes_a_second'] / 1e9:.1f}",
        "of memory": f"{record['share_of_bandwidth']:.0%}",
    }


def _spread(rate: dict[str, float]) -> str:
    return f"{rate['median']:.0f} ({rate['least']:.0f}-{rate['greatest']:.0f})"
