"""A training run, from its settings to the trained model or adapter."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gptcli.checkpoint.folder import ModelFolder
from gptcli.checkpoint.load import WeightPlan, load_decoder
from gptcli.checkpoint.recipes import sources
from gptcli.checkpoint.weights.invert_recipe import is_reversible
from gptcli.errors import ContextOverflow, InputError, NoTemplate, UsageError
from gptcli.export.dense_folder import refuse_gguf, write_dense
from gptcli.export.quantized_folder import copy_texts
from gptcli.files import ADAPTER_CONFIG, read_json
from gptcli.generation.completion import Completion
from gptcli.generation.events import TextDelta
from gptcli.generation.loop import generate
from gptcli.generation.sampling.torch_sampler import TorchSampler
from gptcli.model.config import MoeConfig
from gptcli.models.catalog import fingerprint
from gptcli.runtime.device_plan import DevicePlan, device_of
from gptcli.runtime.memory_errors import memory_errors
from gptcli.runtime.ranks import ranks_here
from gptcli.runtime.resource_limits import free_memory
from gptcli.runtime.torch_engine import TorchEngine
from gptcli.settings import SamplingConfig, StopConfig
from gptcli.text.chat_templates.chat_template import ChatTemplate
from gptcli.text.tokenizer import Tokenizer
from gptcli.training.checkpoints import DATA, INITIAL, RunDirectory, output_errors, written_directory
from gptcli.training.corpus import HELD_OUT, TRAIN, Corpus, CorpusWriter, Encoder
from gptcli.training.documents import Document, PromptCompletion, Text
from gptcli.training.events import TrainingEvent
from gptcli.training.log import Log, write_curve
from gptcli.training.loop import Training
from gptcli.training.lora import Lora
from gptcli.training.new_model import train_tokenizer, write_new_model
from gptcli.training.parallel.data_parallel import Processes
from gptcli.training.parallel.sharding import reshard, shard_decoder, whole
from gptcli.training.settings import TrainSettings

_SAMPLE_TOKENS = 48
Documents = Callable[[Sequence[str]], Iterable[Document]]
Note = Callable[[str], None]
Progress = Callable[[str, int, int], None]  # what is done, and how far


def begin(
    directory: RunDirectory, settings: TrainSettings, base: Path | None, documents: Documents, note: Note
) -> None:
    """Prepares a run: encodes its data and, without a base model, makes the first one; all of it, or nothing.

    base: the folder of the model to train; None: a new one. documents: opens data by its name. Raises InputError and
    others for data that cannot be used, and OutputError.
    """
    ranks = ranks_here()
    record = {
        "settings": settings.record,
        "ranks": 1 if ranks is None else ranks.ranks,
        "fingerprint": None if base is None else fingerprint(base),
        "packed": base is not None
        and settings.lora is not None
        and not settings.fsdp
        and _stays_packed(ModelFolder.open(base)),
    }
    with directory.begun(record) as draft:
        if base is None:
            base = draft / INITIAL
            base.mkdir()
            _write_initial(base, settings, documents)
        (draft / DATA).mkdir()
        _encode(draft / DATA, settings, base, documents, note)


def _stays_packed(folder: ModelFolder) -> bool:
    """Whether packed weights stay packed and are expanded for each product, which saves memory and is slower."""
    mixture = any(isinstance(block.mlp, MoeConfig) for block in folder.architecture.config.blocks)
    return mixture or 4 * folder.parameter_count > free_memory() / 4


def _write_initial(draft: Path, settings: TrainSettings, documents: Documents) -> None:
    assert settings.new is not None
    if settings.tokenizer is None:
        if "-" in settings.data:
            raise UsageError(
                "stdin can be read only once, and a tokenizer reads the data first",
                "write the data to a file, or give a tokenizer with --tokenizer DIR",
            )
        size = train_tokenizer(_texts(documents(settings.data)), settings.vocab_size, draft)
    else:
        size = Tokenizer.open(Path(settings.tokenizer)).size
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            if (file := Path(settings.tokenizer) / name).exists():
                (draft / name).write_bytes(file.read_bytes())
    stop_ids = Tokenizer.open(draft).stop_ids
    config = read_json(Path(settings.new)) | {"vocab_size": size}
    write_new_model(config, stop_ids[0] if stop_ids else None, draft, settings.seed)


def _texts(documents: Iterable[Document]) -> Iterator[str]:
    for document in documents:
        match document:
            case Text(blocks):
                yield from blocks
            case PromptCompletion(prompt, completion):
                yield from (prompt, completion)
            case _:
                yield from (message.content for message in document.messages)


def _encode(draft: Path, settings: TrainSettings, base: Path, documents: Documents, note: Note) -> None:
    folder = ModelFolder.open(base)
    config = folder.architecture.config
    if settings.block_size > config.max_context:
        raise ContextOverflow(f"blocks of {settings.block_size} tokens do not fit a context of {config.max_context}")
    tokenizer = Tokenizer.open(base, folder.gguf.file if folder.gguf else None)
    tokenizer.limit(config.vocab_size)
    try:
        template = ChatTemplate.of_model(base, tokenizer)
    except NoTemplate:
        template = None
    stops = [*tokenizer.stop_ids, *(id for ids in folder.stop_ids.values() for id in ids)]
    encoder = Encoder(tokenizer, template, stops[:1], settings.block_size, settings.truncate)
    with ExitStack() as files:
        train, held_out = (CorpusWriter(draft, name, files) for name in (TRAIN, HELD_OUT))
        share = 0 if settings.eval else settings.eval_share
        encoder.write(documents(settings.data), train, held_out, round(1 / share) if share else 0)
        if settings.eval:
            encoder.write(documents([settings.eval]), held_out, held_out, 0)
        if encoder.left_out:
            first = f"the first is {encoder.left_out[0]}"
            note(f"{len(encoder.left_out)} examples were left out: nothing to learn is in their first tokens; {first}")
        if not train.sequences:
            raise InputError(f"there is nothing to learn in {', '.join(settings.data)}")
        if not held_out.sequences:
            note("nothing is held out: there is no loss to tell learning from learning by heart")
    if encoder.cut:
        note(f"{encoder.cut} examples were cut at {settings.block_size} tokens")


class Run:
    """A prepared run with its model loaded."""

    def __init__(
        self,
        directory: RunDirectory,
        settings: TrainSettings,
        base: Path,
        note: Note,
        progress: Progress,
        processes: Processes,
    ) -> None:
        """base: the model's folder. processes: the processes that share its batches.

        Raises InvalidModel, UsageError, OutOfMemory or NoSuchDevice.
        """
        self.directory, self.settings, self.processes = directory, settings, processes
        torch.set_num_threads(settings.threads)
        self.device = device_of(settings.device, ranks_here())
        self.folder = ModelFolder.open(base)
        if settings.lora is None:
            refuse_gguf(self.folder)
        self.tokenizer = Tokenizer.open(base, self.folder.gguf.file if self.folder.gguf else None)
        packed = (directory.record or {}).get("packed", False)
        loaded_on = torch.device("cpu") if settings.fsdp else self.device
        plan = WeightPlan(loaded_on, torch.float32, "keep" if packed else "dense")
        with memory_errors(self.device, "loading the weights"):
            self.decoder = load_decoder(self.folder, plan, partial(progress, "loading"))
        torch.manual_seed(settings.seed)
        self.lora = None if settings.lora is None else self._adapted(settings.lora)
        parameters = self.lora.parameters if self.lora else self._all(note)
        for parameter in parameters.values():
            parameter.requires_grad_()
        if settings.save_memory:
            for block in self.decoder.blocks:
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        if settings.fsdp:
            shard_decoder(self.decoder, self.device)
            parameters = self.lora.parameters if self.lora else self._now(parameters)
        self.decoder.to(self.device).train()
        plan = replace(plan, device=self.device)
        self._engine = TorchEngine(self.decoder, DevicePlan(plan), self.decoder.config.max_context, load_s=0.0)
        train, held_out = (Corpus(directory.data, name) for name in (TRAIN, HELD_OUT))
        self.training = Training(
            self.decoder, parameters, train, held_out, settings, directory, self._sample, processes
        )
        self.training.resume()

    def _adapted(self, rank: int) -> Lora:
        alpha = 2.0 * rank if self.settings.lora_alpha is None else self.settings.lora_alpha
        return Lora(self.folder, self.decoder, rank, alpha, self.settings.lora_dropout, self.settings.lora_targets)

    def _all(self, note: Note) -> dict[str, nn.Parameter]:
        """Every parameter from which its tensors can be computed; those made of the same tensors are shared.

        Constants are left out; they are no parameters in transformers either.
        """
        of_sources, found, left = dict[tuple[str, ...], nn.Parameter](), dict[str, nn.Parameter](), list[str]()
        for name, recipe in self.folder.architecture.parameters.items():
            path, _, leaf = name.rpartition(".")
            module = self.decoder.get_submodule(path)
            if leaf in getattr(module, "CONSTANTS", ()):
                continue
            if not is_reversible(recipe):
                left.append(name)
                continue
            parameter = of_sources.setdefault(sources(recipe), self.decoder.get_parameter(name))
            setattr(module, leaf, parameter)
            if not any(parameter is each for each in found.values()):
                found[name] = parameter
        if left:
            what = "not trained, for the checkpoint's tensors cannot be told from them"
            note(f"{what}: {', '.join(left[:5])}{', ...' if len(left) > 5 else ''}")
        return found

    def _now(self, names: Iterable[str]) -> dict[str, nn.Parameter]:
        reshard(self.decoder)
        return {name: self.decoder.get_parameter(name) for name in names}

    def events(self, stopped: Callable[[], bool]) -> Iterator[TrainingEvent]:
        """Trains and logs; writes the result at the end. Raises as `Training.run` does."""
        if not self.processes.leads:
            yield from self.training.run(stopped)
            if self.training.step == self.training.steps:
                self._result()
            return
        hint = "try a smaller --micro-batch or --block-size, or --save-memory"
        with Log(self.directory.log, self.training.step) as log, memory_errors(self.device, "training", hint):
            for event in self.training.run(stopped):
                log.add(event)
                yield event
        if self.training.step == self.training.steps:
            self._write_result()

    def _result(self) -> dict[str, Tensor]:
        """The values to write, gathered from all processes."""
        if self.lora is not None:
            parameters = self.lora.parameters
        else:
            self.decoder.requires_grad_(False)
            parameters = self._now(self.folder.architecture.parameters)
        return {name: whole(parameter.detach()) for name, parameter in parameters.items()}

    def _write_result(self) -> None:
        directory, values = self.directory, self._result()
        write_curve(directory.log, directory.path / "loss.svg", directory.path.name)
        with written_directory(directory.path / "result") as draft:
            if self.lora is None:
                write_dense(self.folder, draft, values.__getitem__)
            else:
                self.lora.write(draft, self.settings.model or "", values)
                if not self.folder.is_gguf:
                    copy_texts(self.folder, draft)
        move_result(directory)

    @torch.no_grad()
    def _sample(self, prompt: str) -> str:
        """Continues a prompt. The same weights give the same text; training is not affected."""
        ids = self.tokenizer.encode(prompt) or list(self.tokenizer.stop_ids)
        self.decoder.eval()
        sampler = TorchSampler(
            SamplingConfig(seed=self.settings.seed), self.tokenizer.size, frozenset(), self.tokenizer.token_bytes
        )
        stop_ids = frozenset(self.tokenizer.stop_ids).union(*self.folder.stop_ids.values())
        drawn = Completion(self.tokenizer, ids, sampler, StopConfig(max_tokens=_SAMPLE_TOKENS), stop_ids)
        (events,) = generate(self._engine, [drawn])
        text = b"".join(event.data for event in events if isinstance(event, TextDelta))
        self.decoder.train()
        return text.decode("utf-8", "replace")


def move_result(directory: RunDirectory) -> None:
    """Moves a finished result into the run's directory, and removes what only training needs."""
    result = directory.path / "result"
    if result.exists():
        with output_errors(directory.path):
            # Last comes the file that makes the folder a model.
            for file in sorted(result.iterdir(), key=lambda file: file.name in ("config.json", ADAPTER_CONFIG)):
                os.replace(file, directory.path / file.name)
            result.rmdir()
    directory.finish()
