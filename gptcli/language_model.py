"""The library's face: a model with its tokenizer, template and defaults. The command line uses no other."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeAlias

from gptcli.checkpoint.folder import ModelFolder
from gptcli.checkpoint.generation_config import sampling_defaults
from gptcli.errors import BrokenTokenizer, ContextOverflow, UsageError
from gptcli.generation.request_checks import check_choices, check_request, check_scoring
from gptcli.generation.sampling.native_sampler import CompiledPicker
from gptcli.models.catalog import DEFAULT_MODEL, FetchProgress, fingerprint
from gptcli.models.locate import locate
from gptcli.runtime.fast_start.snapshot_engine import PreparedCache, PreparedEngine
from gptcli.runtime.fast_start.snapshots import Copy, Slot, keep_copy, open_copy, slot_of
from gptcli.runtime.machine import check_room_for_torch
from gptcli.settings import ChatSettings, Dtype, Overflow, Quantize, RuntimeConfig, SamplingConfig, StopConfig
from gptcli.text.chat_template import ChatTemplate
from gptcli.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from gptcli.chat.session import Session
    from gptcli.generation.completion import Picker
    from gptcli.generation.events import Finished, TextDelta
    from gptcli.generation.score_result import ChoiceScore, Score
    from gptcli.generation.speculation import Drafter
    from gptcli.model.cache import KVCache
    from gptcli.runtime.engine import Engine

Progress = Callable[[int, int], None]
Cache: TypeAlias = "KVCache | PreparedCache"

DRAFTED_TOKENS = 4  # a step, at most, by a smaller model; --speculate says otherwise


def _no_progress(done: int, total: int) -> None:
    pass


class LanguageModel:
    """An opened model. Its weights are read, and torch imported, when `load` or the first use asks for them."""

    def __init__(self, name: str, folder: ModelFolder, runtime: RuntimeConfig, *, one_text: int | None = None) -> None:
        self.name = name
        self.folder = folder
        self.runtime = runtime
        self._engine: Engine | None = None
        self._copy: Copy | None = None
        self._prepared: PreparedEngine | None = None
        self._slot: Slot | None = None  # for the copy of the weights that were read
        self._smaller: LanguageModel | None = None
        self._smaller_cache: KVCache | None = None
        config = folder.architecture.config
        self.ctx_size = runtime.ctx_size or config.max_context
        if self.ctx_size > config.max_context:
            raise UsageError(f"ctx-size {self.ctx_size} is beyond the model's context of {config.max_context}")
        if one_text is not None and (slot := slot_of(folder, runtime)) is not None:
            self._copy = open_copy(slot, runtime, self._room(one_text))
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
        one_text: int | None = None,
    ) -> Self:
        """Finds a model by name or directory and reads all but its weights; the default model is fetched if missing.

        one_text: begins to read what `load_for_one` needs for texts of at least so many tokens, -1 for as many as the
        context holds. Raises ModelNotFound, InvalidModel or UsageError.
        """
        folder = ModelFolder.open(locate(name, offline=offline, on_progress=on_fetch))
        return cls(name, folder, runtime, one_text=one_text)

    def load(self, on_progress: Progress = _no_progress) -> Engine:
        """Reads the weights, once, and those of a model that drafts; on_progress gets a model's bytes done and in all.

        Raises OutOfMemory or NoSuchDevice.
        """
        if self._engine is None:
            self._copy = self._prepared = None  # whose memory the weights may need
            self._engine = self._read_weights(on_progress)
        if self._smaller is not None:
            self._smaller.load(on_progress)
        return self._engine

    def load_for_one(self, tokens: int, on_progress: Progress = _no_progress) -> None:
        """`load` for one text at a time, of up to so many tokens, -1 for as many as the context holds: a prepared copy
        will do, which needs no torch."""
        if self._copy is not None and self._smaller is None:
            self._prepared = self._copy.engine(self.ctx_size, self._room(tokens))
        if self._prepared is None:
            self.load(on_progress)

    def _room(self, tokens: int) -> int:
        return self.ctx_size if tokens < 0 else min(tokens, self.ctx_size)

    def keep_copy(self) -> None:
        """Keeps a prepared copy for `load_for_one`, where the weights were read and there can be one."""
        if self._engine is not None and self._slot is not None:
            keep_copy(self._slot, self.folder, self.runtime, self._engine)

    def fitting_cache(self, cache: Cache | None, *, recorded: bool) -> Cache:
        """A cache for one text at a time: the given one, unless another kind is needed, or a new one.

        recorded: whether the text's probabilities are.
        """
        engine = self.engine if recorded else self.running
        fits = isinstance(cache, PreparedCache) == isinstance(engine, PreparedEngine)
        return cache if cache is not None and fits else engine.new_cache()

    @property
    def running(self) -> Engine | PreparedEngine:
        """What runs the decoder: a prepared copy, or the engine."""
        return self._prepared or self.engine

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
        self._slot = slot_of(self.folder, self.runtime)  # before: what is read then is of these files, or of none
        from gptcli.checkpoint.load import load_decoder
        from gptcli.runtime.device_plan import plan_for
        from gptcli.runtime.engine import Engine
        from gptcli.runtime.memory_errors import memory_errors

        plan = plan_for(self.folder, self.runtime)
        with memory_errors(plan.device, "loading the weights"):
            decoder = load_decoder(self.folder, plan.weights, on_progress)
        return Engine(decoder, plan, self.ctx_size, load_s=time.perf_counter() - started)

    @cached_property
    def sampling_defaults(self) -> dict[str, int | float]:
        """Sampling defaults that the model brings. Raises BrokenCheckpoint."""
        return sampling_defaults(self.folder.generation_config)

    @cached_property
    def template(self) -> ChatTemplate:
        """The chat template that the model brings. Raises TemplateError where there is none."""
        return ChatTemplate.of_model(self.folder.path, self.tokenizer)

    @property
    def reference(self) -> str:
        """What finds this model again from wherever: a name, or an absolute path."""
        return os.path.abspath(self.name) if os.path.exists(self.name) else self.name

    @cached_property
    def fingerprint(self) -> str:
        """Tells this model from any other, for records of what it said; see `store.catalog.fingerprint`."""
        return fingerprint(self.folder.path)

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
        explain: bool = False,
    ) -> Iterator[TextDelta | Finished]:
        """Continues a text or token ids; yields TextDelta as text comes, then one Finished.

        Sampling settings left at None are the model's own defaults, else the command line's. Raises UsageError for
        values out of range and ContextOverflow for a prompt that does not fit.

        logprobs and explain are what each TextDelta brings of its tokens, and Finished of all: their log-probabilities
        with that many alternatives, and what each sampling filter did.
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
            explain=explain,
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
        cache: Cache | None = None,
        logprobs: int | None = None,
        explain: bool = False,
        on_prefill: Progress = _no_progress,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[TextDelta | Finished]:
        """`generate` with settled configs; see gptcli.generation.loop.generate for the rest.

        Raises what `check_request` does, and UsageError for a negative `logprobs`, before anything is loaded.
        """
        streams = self.streams(
            prompt,
            [sampling],
            stop,
            cache=cache,
            logprobs=logprobs,
            explain=explain,
            on_prefill=on_prefill,
            cancelled=cancelled,
        )
        return next(streams)

    def streams(
        self,
        prompt: Sequence[int],
        samplings: Sequence[SamplingConfig],
        stop: StopConfig,
        *,
        cache: Cache | None = None,
        logprobs: int | None = None,
        explain: bool = False,
        on_prefill: Progress = _no_progress,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[Iterator[TextDelta | Finished]]:
        """`stream` for each of several configs, to be read in their order; they decode together, which is far faster.

        Each is what it would be alone, but for how sums are rounded. Raises as `stream` does.
        """
        for sampling in dict.fromkeys(replace(sampling, seed=None) for sampling in samplings):
            self.check_request(prompt, sampling)
            never = {token for token, bias in sampling.logit_bias if bias == float("-inf")}
            if never.union(self.stop_ids if stop.ignore_eos else ()).issuperset(range(self.tokenizer.size)):
                raise UsageError("no token is left that may be drawn")
        if logprobs is not None and logprobs < 0:
            raise UsageError(f"logprobs must be at least 0, not {logprobs}")
        from gptcli.generation.loop import generate

        plain = len(samplings) == 1 and logprobs is None and not explain
        room = self._room(-1 if stop.max_tokens < 0 else len(prompt) + stop.max_tokens)
        engine: Engine | PreparedEngine = self.running
        if isinstance(engine, PreparedEngine) and (not plain or room > engine.room):
            engine = self.engine
        assert cache is None or isinstance(cache, PreparedCache) == isinstance(engine, PreparedEngine)
        return generate(
            engine,
            self.tokenizer,
            prompt,
            pickers=[self._picker(engine, sampling, stop, logprobs, explain) for sampling in samplings],
            stop=stop,
            stop_ids=self.stop_ids,
            cache=cache,
            drafter=self._drafter(cancelled),
            most_drafted=self._most_drafted,
            on_prefill=on_prefill,
            cancelled=cancelled,
        )

    def _picker(
        self,
        engine: Engine | PreparedEngine,
        sampling: SamplingConfig,
        stop: StopConfig,
        logprobs: int | None,
        explain: bool,
    ) -> Picker:
        never = self.stop_ids if stop.ignore_eos else frozenset[int]()
        if engine.library is not None and logprobs is None and not explain:
            return CompiledPicker(engine.library, sampling, self.tokenizer.size, never)
        from gptcli.generation.sampling.torch_sampler import TensorPicker

        return TensorPicker(self.tokenizer, sampling, never, logprobs, explain)

    def draft_with(self, smaller: LanguageModel) -> None:
        """Lets a smaller model draft tokens from now on; the text stays the same. Raises UsageError unless it has the
        same tokens."""
        if difference := self.tokenizer.difference(smaller.tokenizer):
            raise UsageError(
                f"the draft model has other tokens: {smaller.name}: {difference}",
                hint="take a smaller model of the same family",
            )
        self._smaller, self._smaller_cache = smaller, None

    @property
    def _most_drafted(self) -> int:
        return self.runtime.speculate or (DRAFTED_TOKENS if self._smaller else 0)

    def _drafter(self, cancelled: Callable[[], bool]) -> Drafter | None:
        from gptcli.generation.speculation import DraftModel, PromptLookup

        if self._smaller is None:
            return PromptLookup() if self.runtime.speculate else None
        if self._smaller_cache is None:  # kept from one generation to the next, as in a conversation
            self._smaller_cache = self._smaller.engine.new_cache()
        return DraftModel(self._smaller.engine, self._smaller_cache, self.tokenizer.size, cancelled)

    def logits(self, ids: Sequence[int]) -> Tensor:
        """Logits at every position of a text, (T, vocab) in fp32. Raises UsageError or ContextOverflow."""
        vocabulary = self.folder.architecture.config.vocab_size
        if not ids or not all(type(id) is int and 0 <= id < vocabulary for id in ids):
            raise UsageError(f"logits are of one or more token ids from 0 to {vocabulary - 1}")
        if len(ids) > self.ctx_size:
            raise ContextOverflow(f"the text has {len(ids)} tokens, the context holds {self.ctx_size}")
        return self.engine.logits(ids)

    @property
    def longest_stride(self) -> int:
        """How many tokens a window of a long text can score, behind what the tokenizer puts before every text."""
        return self.ctx_size + 1 - max(1, len(self.tokenizer.surroundings[0]))

    def score(
        self,
        text: str,
        *,
        stride: int | None = None,
        top: int = 0,
        special: bool = False,
        cache: KVCache | None = None,
        on_progress: Progress = _no_progress,
    ) -> Score:
        """Log-probability of every token of a text, with those of the `top` likeliest at its place.

        A text longer than the context is scored in windows, `stride` tokens further each (by default half the context):
        each token is scored once, behind as many as a window holds. Raises UsageError for an empty text, and for a
        stride or top out of range.
        """
        check_scoring(stride, top, self.longest_stride)
        if not text:
            raise UsageError("there is nothing to score in an empty text")
        from gptcli.generation.scoring import score

        return score(
            self.engine,
            self.tokenizer,
            text,
            stride=stride or max(1, self.longest_stride // 2),
            top=top,
            special=special,
            cache=cache,
            on_progress=on_progress,
        )

    def choose(
        self,
        prompt: str | Sequence[int],
        choices: Sequence[str],
        *,
        special: bool = False,
        cache: KVCache | None = None,
    ) -> tuple[ChoiceScore, ...]:
        """How probable each of several continuations of a prompt is, the most probable first.

        Where a choice changes how the prompt's end is cut into tokens, both count as they are together. Raises
        UsageError, and ContextOverflow where they do not fit.
        """
        check_choices(choices)
        from gptcli.generation.scoring import choose

        return choose(self.engine, self.tokenizer, prompt, choices, special=special, cache=cache)

    def session(self, system: str | None = None, settings: ChatSettings | None = None) -> Session:
        """A conversation with this model; settings that are left out are the model's own, else the command line's."""
        from gptcli.chat.session import Session

        return Session(self, system, settings)


def load(
    model: str | Path = DEFAULT_MODEL,
    *,
    device: str = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = "auto",
    ctx_size: int | None = None,
    threads: int | None = None,
    speculate: int = 0,
    draft_model: str | Path | None = None,
    offline: bool = False,
) -> LanguageModel:
    """Loads a model by name or directory. Raises GptcliError, whose subclasses say what is wrong.

    speculate: drafts up to so many tokens a step, from the text itself or with a smaller model, `draft_model`.
    """
    runtime = RuntimeConfig(
        device=device, dtype=dtype, quantize=quantize, ctx_size=ctx_size, threads=threads, speculate=speculate
    )
    lm = LanguageModel.open(str(model), runtime, offline=offline)
    if draft_model is not None:
        lm.draft_with(LanguageModel.open(str(draft_model), runtime.for_draft_model(), offline=offline))
    lm.load()
    return lm
