"""Makes the completions of a model's texts: checks requests, makes samplers, constraints and splitters. No weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

from gptcli.errors import UsageError
from gptcli.generation.request_checks import check_request
from gptcli.generation.sampling.banned_tokens import always_banned
from gptcli.generation.sampling.constraint import Constraint, nothing_allowed
from gptcli.generation.sampling.native_sampler import native_can_sample
from gptcli.generation.sampling.sampler import make_sampler
from gptcli.runtime.engine import Engine, Workload
from gptcli.settings import ConstraintConfig, SamplingConfig, StopConfig
from gptcli.text.chat_templates.chat_template import prompt_opens_thoughts
from gptcli.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gptcli.generation.completion import Completion
    from gptcli.generation.constraints.grammar import CallGrammar
    from gptcli.generation.constraints.matcher import Compiler
    from gptcli.tools.formats import ToolUse
    from gptcli.tools.splitter import Splitter


class CompletionFactory:
    """Makes completions. stop_ids: the ids that end texts. ctx_size: the context in tokens."""

    def __init__(self, tokenizer: Tokenizer, stop_ids: frozenset[int], ctx_size: int) -> None:
        self._tokenizer, self._stop_ids, self._ctx_size = tokenizer, stop_ids, ctx_size

    def check(
        self,
        prompt: Sequence[int],
        sampling: SamplingConfig,
        constraint: ConstraintConfig | None = None,
        tools: ToolUse | None = None,
    ) -> None:
        """See `LanguageModel.check_request`."""
        check_request(prompt, sampling, self._ctx_size, self._tokenizer.size)
        if tools is not None and constraint is not None:
            raise UsageError(
                "a text that must be of a form cannot call tools", hint="--tool-choice none leaves them out"
            )
        limit = constraint or self._call_grammar(tools)
        if limit is not None:
            self._compiler.start(limit)

    def make(
        self,
        engine_for: Callable[[Workload], Engine],
        prompt: Sequence[int],
        samplings: Sequence[SamplingConfig],
        stop: StopConfig,
        *,
        constraint: ConstraintConfig | None = None,
        logprobs: int | None = None,
        explain: bool = False,
        tools: ToolUse | None = None,
    ) -> tuple[Engine, list[Completion]]:
        """A completion for each of `samplings`, and their engine, which is loaded once all is checked.

        Raises UsageError and ContextOverflow.
        """
        samplings = [sampling.sparing(self._stop_ids) for sampling in samplings]
        banned = self._stop_ids if stop.ignore_eos else frozenset[int]()
        forces = True  # not with bans: a banned token must not be forced
        for sampling in dict.fromkeys(replace(sampling, seed=None) for sampling in samplings):
            self.check(prompt, sampling, constraint, tools)
            never = {token for token, bias in sampling.logit_bias if bias == float("-inf")} | always_banned(sampling)
            if (never | banned).issuperset(range(self._tokenizer.size)):
                raise nothing_allowed()
            forces = forces and not never and not sampling.bans
        if logprobs is not None and logprobs < 0:
            raise UsageError(f"logprobs must be at least 0, not {logprobs}")
        from gptcli.generation.completion import Completion

        tokens = None if stop.max_tokens < 0 else len(prompt) + stop.max_tokens
        engine = engine_for(Workload(explain or not all(map(native_can_sample, samplings)), tokens))
        sampler = partial(
            make_sampler, engine.library, self._tokenizer, banned=banned, logprobs=logprobs, explain=explain
        )
        return engine, [
            Completion(
                self._tokenizer,
                prompt,
                sampler(sampling),
                stop,
                self._stop_ids,
                self._constraint(constraint or self._call_grammar(tools), prompt, forces),
                self._splitter(tools, prompt),
            )
            for sampling in samplings
        ]

    def _call_grammar(self, tools: ToolUse | None) -> CallGrammar | None:
        """The grammar of a required call, or of calls of strict tools; None without either."""
        if tools is None or not tools.holds:
            return None
        from gptcli.generation.constraints.grammar import CallGrammar

        write = partial(tools.grammar, self._tokenizer.control_tokens.ids)
        return CallGrammar(tools.format.name, tools.schemas, tools.held_after, write)

    @cached_property
    def _compiler(self) -> Compiler:
        from gptcli.generation.constraints.matcher import Compiler  # most texts do without

        return Compiler(self._tokenizer, self._stop_ids)

    def _constraint(
        self, config: ConstraintConfig | CallGrammar | None, prompt: Sequence[int], forces: bool
    ) -> Constraint | None:
        """The constraint of a text, from its beginning or from the end of thoughts that the prompt opens."""
        if config is None:
            return None
        in_thoughts = prompt_opens_thoughts(prompt, self._tokenizer)
        return self._compiler.constraint(config, forces=forces, in_thoughts=in_thoughts)

    def _splitter(self, tools: ToolUse | None, prompt: Sequence[int]) -> Splitter | None:
        """Splits calls from a text. Their ids depend on the prompt, so that they differ within a conversation."""
        if tools is None:
            return None
        from gptcli.tools.splitter import splitter_of

        control_ids = self._tokenizer.control_tokens.ids
        return splitter_of(
            tools, prompt, control_ids=control_ids, in_thoughts=prompt_opens_thoughts(prompt, self._tokenizer)
        )
