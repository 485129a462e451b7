"""The generation loop: prefill, draw, decode, stop. Knows nothing of terminals or conversations."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from gptcli.errors import ContextOverflow
from gptcli.generation.events import Explanation, Finished, FinishReason, StepLogprobs, TextDelta, TokenLogprob, Usage
from gptcli.generation.sampling import Sampler
from gptcli.generation.sampling import explain as explained
from gptcli.generation.speculation import PromptLookup, Steps
from gptcli.generation.stopping import StopMatcher
from gptcli.model.cache import KVCache
from gptcli.runtime.engine import Engine
from gptcli.settings import SamplingConfig, StopConfig
from gptcli.text.detokenizer import Detokenizer
from gptcli.text.tokenizer import Tokenizer

Event = TextDelta | Finished


def generate(
    engine: Engine,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    *,
    sampling: SamplingConfig,
    stop: StopConfig,
    stop_ids: frozenset[int],
    cache: KVCache | None = None,
    speculate: int = 0,
    logprobs: int | None = None,
    explain: bool = False,
    on_prefill: Callable[[int, int], None] = lambda done, total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """Continues a prompt that `check_request` accepts; yields text as it comes, then one Finished.

    cache: what it shares with the prompt's beginning is not run again; it is left holding what was run.
    speculate: drafts up to so many tokens a step from the text itself; what comes out is the same.
    logprobs: records each token's log-probability and that of this many alternatives.
    explain: records what the sampling filters did at each token.
    cancelled: asked before every token and chunk; once true, the generation finishes with reason "interrupt".
    Raises ContextOverflow at the context's end where `stop.overflow` is "error".
    """
    started = time.perf_counter()
    cache = engine.new_cache() if cache is None else cache
    sampler = Sampler(sampling, engine.plan.device)
    detokenizer, matcher = Detokenizer(), StopMatcher(stop.strings)
    history, ids, records = list(prompt), list[int](), list[StepLogprobs]()
    recorded = 0  # of the records, those that went out with the text
    reason: FinishReason = "length"
    stopped_by = first_token = None
    overflowed = False

    # The last token is run even where the cache holds it: its logits are what the first draw needs.
    cache.keep_common(prompt[:-1])
    steps = Steps(engine, cache, PromptLookup(speculate) if speculate else None)
    prefilled = len(prompt) - cache.length
    logits = engine.prefill(prompt[cache.length :], cache, on_prefill, cancelled)
    prefill_s = time.perf_counter() - started
    while len(ids) != stop.max_tokens:
        if logits is None or cancelled():
            reason = "interrupt"
            break
        logits = _drawable(logits, tokenizer, stop_ids if stop.ignore_eos else frozenset())
        stages = sampler.stages(logits, history, whole=explain)
        token = int(sampler.draw(stages[-1]))
        first_token = first_token or time.perf_counter()
        if token in stop_ids:
            reason, stopped_by = "stop", tokenizer.token_name(token)
            break
        ids.append(token)
        history.append(token)
        if logprobs is not None or explain:
            explanation = explained(logits, stages, token) if explain else None
            records.append(_step_logprobs(logits, token, logprobs or 0, tokenizer, explanation))
        text = b"" if tokenizer.is_control(token) else tokenizer.token_bytes(token)
        if data := matcher.push(detokenizer.push(text)):
            yield TextDelta(data, tuple(records[recorded:]))
            recorded = len(records)
        if matcher.matched is not None:
            break
        if len(ids) == stop.max_tokens:
            break
        if len(history) < engine.ctx_size:
            logits = steps.after(history)
        elif stop.overflow == "shift":
            history = _shifted(history, tokenizer)
            cache.truncate(0)
            steps.forget()
            logits = engine.prefill(history, cache, cancelled=cancelled)
        else:
            overflowed = True
            break
    if matcher.matched is None and (rest := matcher.push(detokenizer.flush()) + matcher.flush()):
        yield TextDelta(rest, tuple(records[recorded:]))
    if matcher.matched is not None:
        reason, stopped_by = "stop", matcher.matched
    if overflowed and stop.overflow == "error":
        raise ContextOverflow(f"the context of {engine.ctx_size} tokens is full")

    ended = time.perf_counter()
    decode_s = ended - (first_token or ended)
    yield Finished(
        reason=reason,
        ids=tuple(ids),
        stop=stopped_by,
        seed=sampler.seed,
        usage=Usage(
            prompt_tokens=len(prompt),
            completion_tokens=len(ids),
            load_s=engine.load_s,
            prefill_s=prefill_s,
            ttft_s=(first_token or ended) - started,
            decode_s=decode_s,
            prefill_tokens_per_s=prefilled / prefill_s,
            decode_tokens_per_s=max(0, len(ids) - 1) / decode_s if decode_s else 0.0,
            drafted_tokens=steps.drafted,
            kept_tokens=steps.kept,
        ),
        logprobs=tuple(records) if logprobs is not None or explain else None,
    )


def _drawable(logits: Tensor, tokenizer: Tokenizer, forbidden: frozenset[int]) -> Tensor:
    """Logits (vocab,) without the rows that pad the vocabulary, and with -inf for what must not be drawn."""
    logits = logits[: tokenizer.size]
    if forbidden:
        logits = logits.clone()
        logits[[token for token in forbidden if token < len(logits)]] = float("-inf")
    return logits


def _step_logprobs(
    logits: Tensor, token: int, alternatives: int, tokenizer: Tokenizer, explanation: Explanation | None
) -> StepLogprobs:
    logprobs = logits.log_softmax(0)

    def record(id: int, logprob: float) -> TokenLogprob:
        return TokenLogprob(id, tokenizer.token_bytes(id), logprob)

    top = logprobs.topk(min(alternatives, len(logprobs)))
    return StepLogprobs(
        chosen=record(token, float(logprobs[token])),
        top=tuple(map(record, top.indices.tolist(), top.values.tolist())),
        explanation=explanation,
    )


def _shifted(history: list[int], tokenizer: Tokenizer) -> list[int]:
    """The newer half of a full context, behind the control token that began it, if one did."""
    head = history[:1] if tokenizer.is_control(history[0]) else []
    return head + history[len(history) // 2 + len(head) :]
