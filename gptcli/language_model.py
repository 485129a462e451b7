"""The Python API, which the command line uses, too: a model with its tokenizer, template and defaults."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias, Unpack

from gptcli.chat.session import Session
from gptcli.checkpoint.folder import ModelFolder
from gptcli.errors import ContextOverflow, GptcliError, InputError, UsageError
from gptcli.files import ADAPTER_CONFIG, is_there
from gptcli.generation.completion_factory import CompletionFactory
from gptcli.generation.request import Request, StreamKeywords
from gptcli.generation.request_checks import check_choices, check_request, check_scoring
from gptcli.models.catalog import DEFAULT_MODEL, FetchProgress
from gptcli.models.locate import base_of_adapter, locate
from gptcli.models.stores import store_settings
from gptcli.opened_model import OpenedModel, context_size
from gptcli.runtime.engine import (
    Cancelled,
    Engine,
    FullEngine,
    Progress,
    PromptCache,
    RunKeywords,
    Workload,
    never_cancelled,
    no_progress,
)
from gptcli.runtime.loader import Loader
from gptcli.settings import (
    ChatSettings,
    ConstraintConfig,
    Dtype,
    GenerateKeywords,
    Kv,
    Overflow,
    Quantize,
    RuntimeConfig,
    SamplingConfig,
    StopConfig,
)
from gptcli.version import VERSION

if TYPE_CHECKING:
    from torch import Tensor

    from gptcli.generation.completion import Completion
    from gptcli.generation.events import Completed, Event
    from gptcli.generation.score_result import ChoiceScore, Score
    from gptcli.generation.speculation import Drafter
    from gptcli.generation.together.complete_all import Ready
    from gptcli.generation.together.job import Job
    from gptcli.tools.formats import ToolUse

DRAFTED_TOKENS = 4  # at most in a step by a draft model, unless --speculate says otherwise


class LanguageModel(OpenedModel):
    """An opened model. Its weights are read, and torch imported if need be, by `load` or the first use.

    As a context manager it ends with `close`, unless an error ends the block.
    """

    def __init__(
        self, name: str, folder: ModelFolder, runtime: RuntimeConfig, *, workload: Workload | None = None
    ) -> None:
        store = store_settings(name)
        ctx_size = context_size(folder, runtime, store)
        # Before the tokenizer is opened: a snapshot is read meanwhile.
        self._loader = Loader(folder, runtime, ctx_size, workload)
        super().__init__(name, folder, runtime, store, ctx_size)
        self._workload = workload
        self._draft_model: LanguageModel | None = None

    @classmethod
    def open(
        cls,
        name: str,
        runtime: RuntimeConfig,
        *,
        offline: bool = False,
        on_fetch: FetchProgress | None = None,
        workload: Workload | None = None,
    ) -> Self:
        """Finds a model by name or directory and reads all but its weights; so too the draft model of `runtime`.

        The default model is fetched if missing. An adapter's directory opens its base model with the adapter.
        workload: what will be asked of it; None for anything, which needs torch. Raises ModelNotFound, InvalidModel or
        UsageError.
        """
        path = locate(name, offline=offline, on_progress=on_fetch)
        if (base := base_of_adapter(path)) is not None:
            runtime, path = replace(runtime, adapter=(f"{path}=1", *runtime.adapter)), base
        for adapter, _ in runtime.adapters:
            if not is_there(Path(adapter) / ADAPTER_CONFIG):
                raise InputError(f"not an adapter in PEFT's format: {adapter}: it has no {ADAPTER_CONFIG}")
        folder = ModelFolder.open(path)
        lm = cls(name, folder, runtime, workload=workload)
        if runtime.draft_model:
            own, drafts = runtime.for_draft_model(), None if workload is None else Workload()
            draft_model = cls.open(runtime.draft_model, own, offline=offline, on_fetch=on_fetch, workload=drafts)
            lm.draft_with(draft_model)
        return lm

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *failure: object) -> None:
        if kind is None:
            self.close()

    def close(self) -> None:
        """Keeps what makes the next start fast; weights only if a workload was announced and they had to be read."""
        self.folder.keep()
        self.tokenizer.keep()
        if self._workload is not None:
            self._loader.keep_snapshot()
        if self._draft_model is not None:
            self._draft_model.close()

    def load(self, on_progress: Progress = no_progress, workload: Workload | None = None) -> Engine:
        """Loads an engine for the workload, by default the announced one, and the draft model.

        on_progress: a model's bytes read and in all. Raises OutOfMemory or NoSuchDevice.
        """
        engine = self._loader.load(workload or self._workload, on_progress)
        if self._draft_model is not None:
            self._draft_model.load(on_progress)
        return engine

    @property
    def engine(self) -> Engine:
        """What runs the decoder; loaded if nothing is yet."""
        return self._loader.engine or self.load()

    @property
    def is_loaded(self) -> bool:
        """Whether there is an engine."""
        return self._loader.engine is not None

    @property
    def failures(self) -> list[str]:
        """Notes on why the engine or its start is slower here than it could be, or rounds more than was asked for."""
        return [*self._loader.failures, *self.engine.failures]

    def full_engine(self) -> FullEngine:
        """The engine that serves every workload; loaded if it is not yet."""
        return self._loader.load_full()

    def _engine_for(self, workload: Workload) -> Engine:
        """What is loaded if it serves the workload, else the engine that serves every one."""
        return self.engine if self.engine.serves(workload) else self.full_engine()

    @property
    def provenance(self) -> dict[str, Any]:
        """How replies are computed, as it is stored with each of them."""
        return {
            "model": self.reference,
            "fingerprint": self.fingerprint,
            "runtime": {
                "device": self.engine.device_name,
                "dtype": self.engine.dtype_name,
                "quantize": self.runtime.quantize,
                "ctx_size": self.ctx_size,
                "version": VERSION,
            },
        }

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int = 256,
        stop: str | Sequence[str] = (),
        ignore_eos: bool = False,
        overflow: Overflow = "stop",
        logprobs: int | None = None,
        explain: bool = False,
        tools: ToolUse | None = None,
        **options: Unpack[GenerateKeywords],
    ) -> Iterator[Event]:
        """Continues a text or token ids; yields TextDelta as text comes, then one Finished.

        options: SamplingConfig's fields; those left out are the model's own defaults, else the command line's. Also at
        most one of ConstraintConfig's. Raises UsageError for values out of range and ContextOverflow for a prompt that
        does not fit.

        logprobs: adds the tokens' log-probabilities, with that many alternatives, to each TextDelta and to Finished.
        explain: adds what each sampling filter did. tools: from `ChatTemplate.tool_use`; Finished then has the calls,
        which are left out of the text.
        """
        request = Request(
            prompt,
            max_tokens=max_tokens,
            stop=stop,
            ignore_eos=ignore_eos,
            overflow=overflow,
            logprobs=logprobs,
            explain=explain,
            tools=tools,
            **options,
        )
        return self.answer(request)

    def answer(self, request: Request, **run: Unpack[RunKeywords]) -> Iterator[Event]:
        """`generate` for a request."""
        return next(self._run(*self._completion(request), **run))

    def complete_many(
        self,
        requests: Iterable[Request | Ready | None],
        *,
        parallel: int | None = None,
        ordered: bool = False,
        cancelled: Cancelled = never_cancelled,
        wait: Callable[[], object] = lambda: time.sleep(0.01),
    ) -> Iterator[tuple[int, Completed | GptcliError | Ready]]:
        """Completes texts together; yields each with the index of its request as soon as it has ended.

        A request starts once there is room; None means that none has come yet. A request that fails yields its error.
        Anything else, such as an error, is yielded unchanged. Each text is what it would be alone, except for
        rounding. Nothing is drafted.

        parallel: how many texts share a step at most; None for as many as still get faster and fit into the memory.
        ordered: yields them in the order of the requests. cancelled: once true, running texts end with reason
        "interrupt", and no request starts. wait: called while nothing runs and no request has come; returns
        after a while.

        An error while reading the requests is raised once those before it are answered.
        """
        from gptcli.generation.together.complete_all import complete_all

        jobs = (self._job_or_error(request) for request in requests)
        return complete_all(jobs, parallel, ordered=ordered, cancelled=cancelled, wait=wait)

    def _job_or_error(self, request: Request | Ready | None) -> Job | GptcliError | Ready | None:
        if not isinstance(request, Request):
            return request
        try:
            return self.job(request)
        except GptcliError as error:
            return error

    def job(self, request: Request) -> Job:
        """A request, ready to run together with others. Raises UsageError and ContextOverflow."""
        from gptcli.generation.together.job import Job

        engine, [completion] = self._completion(request)
        return Job(engine, completion)

    @cached_property
    def _completions(self) -> CompletionFactory:
        return CompletionFactory(self.tokenizer, self.stop_ids, self.ctx_size)

    def check_request(
        self,
        prompt: Sequence[int],
        sampling: SamplingConfig,
        constraint: ConstraintConfig | None = None,
        tools: ToolUse | None = None,
    ) -> None:
        """Raises UsageError or ContextOverflow if a prompt cannot be continued with these settings. Needs no weights.

        Starts compiling the constraint, or the grammar of a required call, so that it is ready with the weights.
        """
        self._completions.check(prompt, sampling, constraint, tools)

    def stream(
        self, prompt: Sequence[int], sampling: SamplingConfig, stop: StopConfig, **options: Unpack[StreamKeywords]
    ) -> Iterator[Event]:
        """`generate` with resolved configs.

        Raises what `check_request` does, and UsageError for a negative `logprobs`, before anything is loaded.
        """
        return next(self.streams(prompt, [sampling], stop, **options))

    def streams(
        self,
        prompt: Sequence[int],
        samplings: Sequence[SamplingConfig],
        stop: StopConfig,
        *,
        constraint: ConstraintConfig | None = None,
        logprobs: int | None = None,
        explain: bool = False,
        tools: ToolUse | None = None,
        **run: Unpack[RunKeywords],
    ) -> Iterator[Iterator[Event]]:
        """`stream` for each of several configs, to be read in order; they decode together, which is far faster.

        Each is what it would be alone, except for the rounding of sums. Raises as `stream` does.
        """
        engine, completions = self._completions.make(
            self._engine_for,
            prompt,
            samplings,
            self.stopping(stop),
            constraint=constraint,
            logprobs=logprobs,
            explain=explain,
            tools=tools,
        )
        return self._run(engine, completions, **run)

    def _run(
        self, engine: Engine, completions: Sequence[Completion], **run: Unpack[RunKeywords]
    ) -> Iterator[Iterator[Event]]:
        from gptcli.generation.loop import generate

        drafter = self._drafter(run.get("cache"), run.get("cancelled", never_cancelled))
        return generate(engine, completions, drafter=drafter, most_drafted=self._most_drafted, **run)

    def _completion(self, request: Request) -> tuple[Engine, list[Completion]]:
        """The engine and the one completion of a request."""
        return self._completions.make(
            self._engine_for,
            self.tokenizer.encode(request.prompt) if isinstance(request.prompt, str) else request.prompt,
            [SamplingConfig.resolve(request.given, self.sampling_defaults)],
            self.stopping(request.stopping),
            constraint=request.constraint,
            logprobs=request.logprobs,
            explain=request.explain,
            tools=request.tools,
        )

    def draft_with(self, draft_model: LanguageModel) -> None:
        """Lets a smaller model draft tokens from now on; the text stays the same.

        Raises UsageError unless both have the same tokens.
        """
        if difference := self.tokenizer.difference(draft_model.tokenizer):
            raise UsageError(
                f"the draft model has other tokens: {draft_model.name}: {difference}",
                hint="take a smaller model of the same family",
            )
        self._draft_model = draft_model

    @property
    def _most_drafted(self) -> int:
        return self.runtime.speculate or (DRAFTED_TOKENS if self._draft_model else 0)

    def _drafter(self, cache: PromptCache | None, cancelled: Cancelled) -> Drafter | None:
        from gptcli.generation.sampling.sampler import make_sampler
        from gptcli.generation.speculation import DraftModel, PromptLookup

        if self._draft_model is None:
            return PromptLookup() if self.runtime.speculate else None
        engine = self._draft_model.engine
        drafts = (cache or PromptCache()).drafts  # kept from one generation to the next, as in a conversation
        sampler = make_sampler(engine.library, self.tokenizer, SamplingConfig(temperature=0.0))
        return DraftModel(engine, drafts.for_engine(engine), sampler, cancelled)

    def logits(self, ids: Sequence[int]) -> Tensor:
        """Logits at every position of a text, (T, vocab) in fp32. Raises UsageError or ContextOverflow."""
        vocabulary = self.folder.architecture.config.vocab_size
        if not ids or not all(type(id) is int and 0 <= id < vocabulary for id in ids):
            raise UsageError(f"logits are of one or more token ids from 0 to {vocabulary - 1}")
        if len(ids) > self.ctx_size:
            raise ContextOverflow(f"the text has {len(ids)} tokens, the context holds {self.ctx_size}")
        return self.full_engine().logits(ids)

    def embed(self, text: str | Sequence[int]) -> Tensor:
        """The mean of a text's last hidden states, scaled to length 1: (hidden,) in fp32.

        Models that were not trained for it tell texts apart only roughly. Raises UsageError or ContextOverflow.
        """
        ids = self.tokenizer.encode(text) if isinstance(text, str) else text
        check_request(ids, SamplingConfig(), self.ctx_size + 1, self.tokenizer.size)  # + 1: no token follows
        mean: Tensor = self.full_engine().embed(ids)
        unit: Tensor = mean / mean.norm().clamp(min=1e-12)
        return unit

    @property
    def longest_stride(self) -> int:
        """The most tokens that a window of a long text can score: those that begin every text are not scored."""
        return self.ctx_size + 1 - max(1, len(self.tokenizer.surroundings[0]))

    @property
    def _default_stride(self) -> int:
        """The stride with which a long text's tokens are scored after at least an eighth of the context."""
        return self.longest_stride - self.longest_stride // 8

    def score(
        self,
        text: str,
        *,
        stride: int | None = None,
        top: int = 0,
        special: bool = False,
        cache: PromptCache | None = None,
        on_progress: Progress = no_progress,
    ) -> Score:
        """Log-probability of every token of a text, with those of the `top` likeliest tokens at its position.

        A text longer than the context is scored in windows that advance by `stride` tokens (by default 7/8 of the
        context); each token is scored once, given as many tokens as a window holds. Raises UsageError for an empty
        text, and for a stride or top out of range.
        """
        check_scoring(stride, top, self.longest_stride)
        from gptcli.generation.scoring import score

        ids = self.tokenizer.encode(_not_empty(text), special=special)
        return score(
            self._engine_for(Workload()),
            self.tokenizer,
            ids,
            stride=stride or self._default_stride,
            size=len(text.encode()),
            head=ids[: len(self.tokenizer.surroundings[0])],
            top=top,
            cache=cache,
            on_progress=on_progress,
        )

    def score_ids(self, ids: Sequence[int], *, top: int = 0) -> Score:
        """`score` of token ids that `check_request` accepts; the first has no log-probability."""
        from gptcli.generation.scoring import score

        size, engine = len(self.tokenizer.decode(ids)), self._engine_for(Workload())
        return score(engine, self.tokenizer, ids, stride=self.ctx_size, size=size, top=top)

    def score_many(
        self, texts: Iterable[str], *, stride: int | None = None, top: int = 0, special: bool = False
    ) -> Iterator[Score]:
        """`score` for each of many texts; short ones share steps."""
        check_scoring(stride, top, self.longest_stride)
        from gptcli.generation.scoring import score_many

        texts, stride = map(_not_empty, texts), stride or self._default_stride
        engine = self._engine_for(Workload())
        return score_many(engine, self.tokenizer, texts, stride=stride, special=special, top=top)

    def choose_many(
        self, prompts: Iterable[str], choices: Sequence[str], *, special: bool = False
    ) -> Iterator[tuple[ChoiceScore, ...]]:
        """`choose` for each of many prompts; they share steps."""
        check_choices(choices)
        from gptcli.generation.scoring import choose_many

        return choose_many(self._engine_for(Workload()), self.tokenizer, prompts, choices, special=special)

    def choose(
        self,
        prompt: str | Sequence[int],
        choices: Sequence[str],
        *,
        special: bool = False,
        cache: PromptCache | None = None,
    ) -> tuple[ChoiceScore, ...]:
        """How probable each of several continuations of a prompt is, the most probable first.

        A choice may change how the end of the prompt is tokenized; see gptcli.generation.scoring.choose. Raises
        UsageError, and ContextOverflow where they do not fit.
        """
        check_choices(choices)
        from gptcli.generation.scoring import choose

        return choose(self._engine_for(Workload()), self.tokenizer, prompt, choices, special=special, cache=cache)

    def session(self, system: str | None = None, settings: ChatSettings | None = None) -> ChatSession:
        """A conversation with this model; what is left out is the model's own, else the command line's."""
        return Session(self, self.store.system if system is None else system, settings)


def _not_empty(text: str) -> str:
    if not text:
        raise UsageError("there is nothing to score in an empty text")
    return text


ChatSession: TypeAlias = Session[LanguageModel]


def load(
    model: str | Path = DEFAULT_MODEL,
    *,
    device: str = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = "auto",
    kv: Kv = "auto",
    ctx_size: int | None = None,
    threads: int | None = None,
    speculate: int = 0,
    draft_model: str | Path | None = None,
    adapter: str | Path | Sequence[str | Path] | None = None,
    offline: bool = False,
) -> LanguageModel:
    """Loads a model by name, directory or GGUF file. Raises subclasses of GptcliError that say what is wrong.

    speculate: most tokens drafted a step, from the text itself or with a smaller model, `draft_model`. adapter: LoRA
    adapters in PEFT's format, each perhaps with `=WEIGHT`.
    """
    runtime = RuntimeConfig(
        device=device,
        dtype=dtype,
        quantize=quantize,
        kv=kv,
        ctx_size=ctx_size,
        threads=threads,
        speculate=speculate,
        draft_model=None if draft_model is None else str(draft_model),
        adapter=tuple(map(str, [adapter] if isinstance(adapter, str | Path) else adapter or ())),
    )
    lm = LanguageModel.open(str(model), runtime, offline=offline)
    lm.load()
    return lm
