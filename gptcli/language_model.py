"""The library's face: a model with its tokenizer, template and defaults. The command line uses no other."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

from gptcli.address_space import check_room_for_torch
from gptcli.checkpoint.folder import ModelFolder
from gptcli.checkpoint.generation_config import sampling_defaults
from gptcli.errors import BrokenTokenizer, ContextOverflow, UsageError
from gptcli.generation.request import check_request
from gptcli.settings import Dtype, Overflow, Quantize, RuntimeConfig, SamplingConfig, StopConfig
from gptcli.store.catalog import DEFAULT_MODEL, FetchProgress
from gptcli.store.locate import locate
from gptcli.text.chat_template import ChatTemplate
from gptcli.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from gptcli.generation.events import Finished, TextDelta
    from gptcli.model.cache import KVCache
    from gptcli.runtime.engine import Engine
    from gptcli.session import Session

Progress = Callable[[int, int], None]


def _no_progress(done: int, total: int) -> None:
    pass


@dataclass(frozen=True)
class Score:
    """How probable a text is. `logprobs` has one entry a token, the first None; `nll` is their negative sum."""

    ids: tuple[int, ...]
    logprobs: tuple[float | None, ...]
    bytes: int

    @property
    def nll(self) -> float:
        """Negative log-likelihood of the text behind its first token, in nats."""
        return -math.fsum(logprob for logprob in self.logprobs if logprob is not None)

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-likelihood a token."""
        return math.exp(self.nll / max(1, len(self.ids) - 1))

    @property
    def bits_per_byte(self) -> float:
        """Bits the model needs for a byte of the text."""
        return self.nll / math.log(2) / max(1, self.bytes)


class LanguageModel:
    """An opened model. Its weights are read, and torch imported, when `load` or the first use asks for them."""

    def __init__(self, name: str, folder: ModelFolder, runtime: RuntimeConfig) -> None:
        self.name = name
        self.folder = folder
        self.runtime = runtime
        self._engine: Engine | None = None
        config = folder.architecture.config
        self.ctx_size = runtime.ctx_size or config.max_context
        if self.ctx_size > config.max_context:
            raise UsageError(f"ctx-size {self.ctx_size} is beyond the model's context of {config.max_context}")
        self.tokenizer = Tokenizer.open(folder.path)
        if self.tokenizer.size > config.vocab_size:
            raise BrokenTokenizer(f"the tokenizer has {self.tokenizer.size} tokens, the model only {config.vocab_size}")

    @classmethod
    def open(
        cls,
        name: str,
        runtime: RuntimeConfig,
        *,
        offline: bool = False,
        on_fetch: FetchProgress | None = None,
    ) -> Self:
        """Finds a model by name or directory and reads all but its weights; the default model is fetched if missing.

        Raises ModelNotFound, InvalidModel or UsageError.
        """
        return cls(name, ModelFolder.open(locate(name, offline=offline, on_progress=on_fetch)), runtime)

    def load(self, on_progress: Progress = _no_progress) -> Engine:
        """Reads the weights, once; on_progress gets bytes done and in all. Raises OutOfMemory or NoSuchDevice."""
        if self._engine is None:
            self._engine = self._read_weights(on_progress)
        return self._engine

    @property
    def engine(self) -> Engine:
        """The loaded decoder."""
        return self.load()

    def _read_weights(self, on_progress: Progress) -> Engine:
        started = time.perf_counter()
        # How long OpenMP's threads spin for each other before they sleep, read when torch is first imported. By default
        # they starve each other where another process keeps a core busy (docs/benchmarks.md).
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
        check_room_for_torch()
        from gptcli.checkpoint.load import load_decoder
        from gptcli.runtime.device import plan_for
        from gptcli.runtime.engine import Engine
        from gptcli.runtime.memory import memory_errors

        plan = plan_for(self.folder, self.runtime)
        with memory_errors(plan.device, "loading the weights"):
            decoder = load_decoder(
                self.folder,
                plan.device,
                plan.dtype,
                plan.packing,
                on_progress,
                library=plan.library if plan.as_stored else None,
                integers=plan.integers,
            )
        return Engine(decoder, plan, self.ctx_size, load_s=time.perf_counter() - started)

    @cached_property
    def sampling_defaults(self) -> dict[str, int | float]:
        """Sampling defaults that the model brings. Raises BrokenCheckpoint."""
        return sampling_defaults(self.folder.generation_config)

    @cached_property
    def template(self) -> ChatTemplate:
        """The chat template that the model brings. Raises TemplateError where there is none."""
        return ChatTemplate.of_model(self.folder.path, self.tokenizer)

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Every id that config, generation config or tokenizer name as the end."""
        return frozenset(self.tokenizer.stop_ids).union(*self.folder.stop_ids.values())

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int = 256,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repeat_penalty: float | None = None,
        repeat_last_n: int | None = None,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        logit_bias: dict[int, float] | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        ignore_eos: bool = False,
        overflow: Overflow = "stop",
        logprobs: int | None = None,
    ) -> Iterator[TextDelta | Finished]:
        """Continues a text or token ids; yields TextDelta as text comes, then one Finished.

        Sampling settings left at None are the model's own defaults, else the command line's. Raises UsageError for
        values out of range and ContextOverflow for a prompt that does not fit.
        """
        given = {
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "repeat_penalty": repeat_penalty,
            "repeat_last_n": repeat_last_n,
            "presence_penalty": presence_penalty,
            "frequency_penalty": frequency_penalty,
            "logit_bias": None if logit_bias is None else tuple(logit_bias.items()),
            "seed": seed,
        }
        return self.stream(
            self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt,
            SamplingConfig.resolve(given, self.sampling_defaults),
            StopConfig(
                max_tokens=max_tokens,
                strings=(stop,) if isinstance(stop, str) else tuple(stop),
                ignore_eos=ignore_eos,
                overflow=overflow,
            ),
            logprobs=logprobs,
        )

    def check_request(self, prompt: Sequence[int], sampling: SamplingConfig) -> None:
        """Raises UsageError or ContextOverflow where a prompt cannot be continued so. Needs no weights."""
        check_request(prompt, sampling, self.ctx_size, self.tokenizer.size)

    def stream(
        self,
        prompt: Sequence[int],
        sampling: SamplingConfig,
        stop: StopConfig,
        *,
        cache: KVCache | None = None,
        logprobs: int | None = None,
        on_prefill: Progress = _no_progress,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[TextDelta | Finished]:
        """`generate` with settled configs; see gptcli.generation.loop.generate for the rest.

        Raises what `check_request` does, and UsageError for a negative `logprobs`, before anything is loaded.
        """
        self.check_request(prompt, sampling)
        never = {token for token, bias in sampling.logit_bias if bias == -math.inf}
        if never.union(self.stop_ids if stop.ignore_eos else ()).issuperset(range(self.tokenizer.size)):
            raise UsageError("no token is left that may be drawn")
        if logprobs is not None and logprobs < 0:
            raise UsageError(f"logprobs must be at least 0, not {logprobs}")
        from gptcli.generation.loop import generate

        return generate(
            self.engine,
            self.tokenizer,
            prompt,
            sampling=sampling,
            stop=stop,
            stop_ids=self.stop_ids,
            cache=cache,
            speculate=self.runtime.speculate,
            logprobs=logprobs,
            on_prefill=on_prefill,
            cancelled=cancelled,
        )

    def logits(self, ids: Sequence[int]) -> Tensor:
        """Logits at every position of a text, (T, vocab) in fp32. Raises UsageError or ContextOverflow."""
        vocabulary = self.folder.architecture.config.vocab_size
        if not ids or not all(type(id) is int and 0 <= id < vocabulary for id in ids):
            raise UsageError(f"logits are of one or more token ids from 0 to {vocabulary - 1}")
        if len(ids) > self.ctx_size:
            raise ContextOverflow(f"the text has {len(ids)} tokens, the context holds {self.ctx_size}")
        return self.engine.logits(ids)

    def score(self, text: str) -> Score:
        """Log-probability of every token of a text. Raises ContextOverflow, and UsageError for an empty text."""
        ids = self.tokenizer.encode(text)
        if not ids:
            raise UsageError("there is nothing to score in an empty text")
        logits = self.logits(ids)[:-1]  # (T - 1, vocab): each predicts the next token
        logprobs = logits.log_softmax(-1)[range(len(ids) - 1), ids[1:]].tolist()
        return Score(tuple(ids), (None, *logprobs), len(text.encode()))

    def session(self, system: str | None = None) -> Session:
        """A conversation with this model."""
        from gptcli.session import Session

        return Session(self, system)


def load(
    model: str | Path = DEFAULT_MODEL,
    *,
    device: str = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = "auto",
    ctx_size: int | None = None,
    threads: int | None = None,
    speculate: int = 0,
    offline: bool = False,
) -> LanguageModel:
    """Loads a model by name or directory. Raises GptcliError, whose subclasses say what is wrong."""
    runtime = RuntimeConfig(
        device=device, dtype=dtype, quantize=quantize, ctx_size=ctx_size, threads=threads, speculate=speculate
    )
    lm = LanguageModel.open(str(model), runtime, offline=offline)
    lm.load()
    return lm
