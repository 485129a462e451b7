"""Errors for directories that are not a model in safetensors: what each is, and a hint."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

from gptcli.errors import BrokenCheckpoint, GptcliError, InvalidModel
from gptcli.files import ADAPTER_CONFIG, is_there, read_json

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
# PEFT's kinds of adapters that add tokens, layers or a router: they cannot be merged into the base model's weights.
_CANNOT_BE_MERGED = (
    "ADAPTION_PROMPT",
    "CPT",
    "MULTITASK_PROMPT_TUNING",
    "P_TUNING",
    "PREFIX_TUNING",
    "PROMPT_TUNING",
    "TRAINABLE_TOKENS",
    "XLORA",
)
_CONVERT = (
    "import sys; from transformers import AutoModelForCausalLM, AutoTokenizer; "
    "[each.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2]) for each in (AutoModelForCausalLM, AutoTokenizer)]"
)


def refuse_adapter(path: Path) -> None:
    """Raises InvalidModel if a directory holds an adapter."""
    if not is_there(path / ADAPTER_CONFIG):
        return
    config: dict[str, Any] = {}
    with contextlib.suppress(GptcliError):
        config = read_json(path / ADAPTER_CONFIG, notes=[])
    base = config.get("base_model_name_or_path") or config.get("model")
    of = f"of the model {base[:200]}" if isinstance(base, str) else "it does not say of which model"
    raise InvalidModel(f"an adapter, not a whole model: {path}: {of}", _way_to_merge(path, config, base))


def _way_to_merge(path: Path, config: dict[str, Any], base: object) -> str:
    kind, task = config.get("peft_type"), config.get("task_type")
    if kind in _CANNOT_BE_MERGED:
        return f"adapters of the kind {kind} cannot be merged into their model, and are not supported"
    if task not in (None, "CAUSAL_LM"):
        return f"its task is {str(task)[:40]}, and gptcli runs models that continue texts (CAUSAL_LM)"
    if kind is None and "lora_parameters" in config:  # MLX
        model = shlex.quote(str(base))
        return f"merge the two: mlx_lm.fuse --model {model} --adapter-path {shlex.quote(str(path))} --save-path MERGED"
    if kind is None:
        return "merge the two with what made it; PEFT's adapters have a peft_type"
    adapter, merge = json.dumps(str(path)), 'merge_and_unload().save_pretrained("MERGED")'
    if isinstance(base, str) and _HUB_NAME.fullmatch(base):
        code = f"from peft import AutoPeftModelForCausalLM as A; A.from_pretrained({adapter}).{merge}"
        where = ""
    else:  # a path on the machine where it was trained
        code = (
            "from peft import PeftModel as P; from transformers import AutoModelForCausalLM as M; "
            f'P.from_pretrained(M.from_pretrained("BASE"), {adapter}).{merge}'
        )
        where = ", where BASE is that model on this machine"
    return f"merge the two with PEFT{where}: python -c {shlex.quote(code)}; then copy the tokenizer's files to MERGED"


def refuse_pickle(path: Path) -> None:
    """Raises BrokenCheckpoint if a directory holds pickled weights; the hint converts them in a container."""
    if not any(path.glob("*.bin")):
        return
    source, target = (shlex.quote(f"{path.absolute()}{ending}") for ending in ("", "-safetensors"))
    install = "pip install -q torch transformers --extra-index-url https://download.pytorch.org/whl/cpu"
    inside = f'{install} && python -c "{_CONVERT}" /in /out'
    raise BrokenCheckpoint(
        f"no safetensors weights: {path}: pickle (.bin) is not supported, for it can run code",
        hint=f"convert it in a container, which sees nothing else: mkdir {target} && docker run --rm "
        f"--user $(id -u) -e HOME=/tmp -v {source}:/in:ro -v {target}:/out python:3.12 sh -c {shlex.quote(inside)}",
    )
