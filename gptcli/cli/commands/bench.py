"""`gptcli bench`: how fast a model runs here, compared with what the memory bandwidth allows."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import psutil
import typer

from gptcli.cli import options
from gptcli.cli.json_records import json_line
from gptcli.cli.parsing.option_groups import only, with_option_groups, without
from gptcli.cli.run_options import RunOptions, load_model
from gptcli.cli.terminal.signals import interruptible
from gptcli.cli.terminal.stderr import ProgressLine, size
from gptcli.cli.terminal.stdout import StdoutSink
from gptcli.cli.terminal.tables import print_records
from gptcli.errors import UsageError
from gptcli.language_model import LanguageModel
from gptcli.models.catalog import DEFAULT_MODEL

if TYPE_CHECKING:
    from gptcli.runtime.bench import Point

Lengths = Annotated[
    list[int] | None,
    typer.Option("-p", "--prompt-tokens", min=1, help="Length of the prompt. Repeatable. (default: 512)"),
]
DecodeTokens = Annotated[int, typer.Option("-n", "--decode-tokens", min=1, help="Tokens decoded after it.")]
Repeats = Annotated[int, typer.Option("--repeats", min=1, help="Runs; figures are their medians.")]


@with_option_groups
def bench(
    *,
    model: options.Model = DEFAULT_MODEL,
    runtime: Annotated[options.RuntimeOptions, without("ctx_size", "speculate", "draft_model")],
    prompt_tokens: Lengths = None,
    decode_tokens: DecodeTokens = 64,
    repeats: Repeats = 5,
    output: Annotated[options.OutputOptions, only("as_json", "quiet")],
) -> None:
    """Measure prefill and decode: tokens a second, bytes a token, the share of this machine's memory bandwidth.

    benchmarks/compare_llama_cpp.py in the source tree puts it beside llama.cpp.
    """
    run = RunOptions(model=model, runtime=runtime, output=output)
    lengths = sorted(prompt_tokens or [512])
    with ProgressLine(quiet=output.quiet) as activity:
        lm = run.open_model(activity)
        if lengths[-1] + decode_tokens > lm.ctx_size:
            raise UsageError(f"{lengths[-1]} + {decode_tokens} tokens are beyond the context of {lm.ctx_size}")
        load_model(lm, activity)
        engine = lm.torch_engine()
        engine.prefill([0], engine.new_cache())
        first_token_s = time.time() - psutil.Process().create_time()
    from gptcli.runtime.bench import Bandwidth, measure, peak_device_memory, peak_memory

    points: list[Point] = []
    with interruptible() as cancelled:  # without a progress line, whose thread would cost time
        engine.prefill([0] * (lengths[-1] + decode_tokens), engine.new_cache(), cancelled=cancelled)
        # The peaks come first: measuring the bandwidth takes memory.
        peaks = {"peak_memory": peak_memory(), "peak_device_memory": peak_device_memory(engine.plan.device)}
        bandwidth = Bandwidth(engine.plan.device, engine.library)
        for length in lengths:
            point = measure(engine, length, decode_tokens, repeats, bandwidth, cancelled)
            if point is None:
                raise KeyboardInterrupt
            points.append(point)
    facts = _facts(run, lm, first_token_s, bandwidth.best) | {name: peak for name, peak in peaks.items() if peak}
    records = [_record(point, bandwidth.best) for point in points]
    run.print_failures(lm)
    if output.as_json:
        StdoutSink().write(json_line(facts | {"lengths": records}))
        return
    print_records([{"": name, "value": value} for name, value in facts.items()], False, _fact_row, header=False)
    print_records([_row(record) for record in records], as_json=False)


def _facts(run: RunOptions, lm: LanguageModel, first_token_s: float, bandwidth: float) -> dict[str, Any]:
    engine = lm.torch_engine()
    return {
        "model": lm.name,
        "parameters": lm.folder.parameter_count,
        "device": engine.device_name,
        "dtype": engine.dtype_name,
        "arithmetic": engine.arithmetic,
        "quantize": run.runtime.quantize,
        "kernels": engine.kernels,
        "threads": engine.threads,
        "bytes_a_second": bandwidth,
        "load_s": engine.load_s,
        "first_token_s": first_token_s,
        "weight_bytes": lm.folder.weight_bytes,
    }


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
    rate = "{median:.0f} ({least:.0f}-{greatest:.0f})".format_map
    return {
        "prompt": str(record["prompt_tokens"]),
        "prefill tok/s": rate(record["prefill_tokens_per_s"]),
        "decode tok/s": rate(record["decode_tokens_per_s"]),
        "ms": f"{record['decode_ms']:.2f}",
        "a token": size(record["bytes_a_token"]),
        "GB/s": f"{record['bytes_a_second'] / 1e9:.1f}",
        "of memory": f"{record['share_of_bandwidth']:.0%}",
    }
