"""Constrained texts beside unconstrained ones of as many tokens, in turns: the median of the pairs' ratios.

python benchmarks/constraints.py [--model NAME] [--repeats 9] [--temperature 0]

Also the time in which a constraint is ready: checked alone, and compiled with the model's tokens the first time. And
its work for a token: the least processor time of nine runs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence

import gptcli
from gptcli import Finished, LanguageModel
from gptcli.generation.constraints.grammar import checked_grammar
from gptcli.generation.constraints.matcher import Compiler
from gptcli.models.catalog import DEFAULT_MODEL
from gptcli.runtime.engine import PromptCache
from gptcli.settings import ConstraintConfig, SamplingConfig, StopConfig

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 30},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "born": {"type": "string", "format": "date"},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 20}, "minItems": 3, "maxItems": 5},
        "role": {"enum": ["author", "editor", "reader"]},
    },
    "required": ["name", "age", "born", "tags", "role"],
    "additionalProperties": False,
}
FORMS = {
    "an object of five fields": ConstraintConfig(json_schema=PERSON),
    "a string of 300 characters": ConstraintConfig(json_schema={"type": "string", "minLength": 300}),
    "a regex of words": ConstraintConfig(regex="([a-z]+ ){60}"),
}


def decoded(
    lm: LanguageModel,
    prompt: list[int],
    sampling: SamplingConfig,
    stop: StopConfig,
    constraint: ConstraintConfig | None,
) -> Finished:
    """How a text ended, its prompt cached before."""
    cache = PromptCache()
    list(lm.stream(prompt, sampling, StopConfig(max_tokens=1), cache=cache))
    *_, last = lm.stream(prompt, sampling, stop, cache=cache, constraint=constraint)
    assert isinstance(last, Finished)
    return last


def work(compiler: Compiler, config: ConstraintConfig, ids: Sequence[int]) -> float:
    """Processor time of following a text, in microseconds a token."""
    constraint = compiler.constraint(config)
    started = time.thread_time()
    for token in ids:
        _ = constraint.finished or constraint.forced() or constraint.allowed()
        constraint.accept(token)
    return 1e6 * (time.thread_time() - started) / len(ids)


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--temperature", type=float, default=0.0)
    options = parser.parse_args()
    sampling = SamplingConfig(temperature=options.temperature, seed=1)
    lm = gptcli.load(options.model, device="cpu")
    prompt = lm.tokenizer.encode("An author in a small town, who is 42 years old, writes of herself as JSON:\n")
    print(
        "| text | tokens | forced | checked, ms | compiled, ms | work, us | constrained, tok/s | free, tok/s | ratio |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name, config in FORMS.items():
        started = time.perf_counter()
        checked_grammar(config)
        checked = time.perf_counter()
        compiler = Compiler(lm.tokenizer, lm.stop_ids)
        compiler.constraint(config)
        compiled = time.perf_counter()
        rates, last = [], decoded(lm, prompt, sampling, StopConfig(max_tokens=200), config)
        count = len(last.ids)
        for _ in range(options.repeats):
            free = decoded(lm, prompt, sampling, StopConfig(max_tokens=count, ignore_eos=True), None)
            last = decoded(lm, prompt, sampling, StopConfig(max_tokens=200), config)
            rates.append((last.usage.decode_tokens_per_s, free.usage.decode_tokens_per_s))
        ours, theirs = (statistics.median(column) for column in zip(*rates, strict=True))
        ratio = statistics.median(one / other for one, other in rates)
        times = f"{1000 * (checked - started):.0f} | {1000 * (compiled - checked):.0f}"
        times += f" | {min(work(compiler, config, last.ids) for _ in range(9)):.0f}"
        print(f"| {name} | {count} | {last.usage.forced_tokens} | {times} | {ours:.0f} | {theirs:.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
