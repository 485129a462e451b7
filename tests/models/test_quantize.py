"""`models quantize` and `models export` as a script meets them; packed folders beside `--quantize`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gptcli.checkpoint.folder import ModelFolder
from gptcli.export.dense_folder import write_dense
from gptcli.language_model import LanguageModel
from gptcli.models.catalog import install_root
from gptcli.settings import RuntimeConfig
from tests.cli.conftest import Cli, Result
from tests.gguf.tiny_gguf import Kind, write_gguf
from tests.parity.reference import write_reference
from tests.parity.test_families import DEEPSEEK, GROUPS
from tests.tiny import make_model, make_tokenizer

IDS = [5, 17, 200, 3, 99, 2, 150, 260]
FAMILIES = {
    "llama": {},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "mixtral": {"num_local_experts": 4},
    "gpt_neox": {},
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32},
    "deepseek_v3": DEEPSEEK | GROUPS | {"moe_intermediate_size": 32, "q_lora_rank": 64, "v_head_dim": 16},
}


@pytest.mark.parametrize("packing", ["int8", "int4"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_quantized_folder_computes_what_quantizing_while_loading_does(
    model_type: str, packing: Any, models: Cli, tmp_path: Path
) -> None:
    path = write_reference(tmp_path / "model", model_type, vocab_size=320, **FAMILIES[model_type]).path
    make_tokenizer().save(str(path / "tokenizer.json"))
    result = models("quantize", path, "--to", packing, "--name", "small")
    assert result.code == 0, result.err
    assert result.text == f"{install_root() / 'small'}\n"
    in_memory = LanguageModel.open(str(path), RuntimeConfig(device="cpu", quantize=packing))
    written = LanguageModel.open("small", in_memory.runtime)
    assert torch.equal(written.logits(IDS), in_memory.logits(IDS))
    assert ModelFolder.open(install_root() / "small").weight_bytes < 0.5 * ModelFolder.open(path).weight_bytes


def test_heads_and_embeddings_have_8_bits(models: Cli, tmp_path: Path) -> None:
    path = make_model(tmp_path / "model", intermediate_size=64, generation_config={"temperature": 0.5})
    assert models("quantize", path, "--to", "int4", "-q").code == 0
    config = json.loads((install_root() / "model-int4" / "config.json").read_text())
    eight = {"model.embed_tokens": {"group_size": 32, "bits": 8}}
    assert config["quantization"] == {"group_size": 32, "bits": 4, **eight}
    lm = LanguageModel.open("model-int4", RuntimeConfig(device="cpu"))
    assert lm.sampling_defaults == {"temperature": 0.5}
    assert lm.template.source == LanguageModel.open(str(path), RuntimeConfig()).template.source


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8], ids=str)
def test_causal_masks_are_not_written(dtype: torch.dtype, models: Cli, tmp_path: Path) -> None:
    path = write_reference(tmp_path / "model", "gpt2", vocab_size=320, **FAMILIES["gpt2"]).path
    make_tokenizer().save(str(path / "tokenizer.json"))
    tensors, mask = load_file(path / "model.safetensors"), "transformer.h.0.attn.bias"
    save_file(tensors | {mask: torch.ones(1, 1, 128, 128).tril().to(dtype)}, path / "model.safetensors")
    folder, dense = ModelFolder.open(path), tmp_path / "dense"
    dense.mkdir()
    write_dense(folder, dense, lambda name: None)
    assert models("quantize", path, "--to", "int8", "-q").code == 0
    for written in (dense, install_root() / "model-int8"):
        assert ModelFolder.open(written).weights.keys() == folder.weights.keys() - {mask}


def test_packed_weights_are_not_packed_again(models: Cli, tmp_path: Path) -> None:
    models("import", write_gguf(tmp_path / "tiny.gguf", Kind.Q8_0), "--name", "packed")
    packed = "nothing to quantize: the weights are packed already: 8 bits in groups of 32"
    models("quantize", "packed", "--to", "int4").fails(2, packed)


def test_a_gguf_file_of_packed_weights_is_rounded_with_a_note(models: Cli, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", Kind.Q8_0)
    result = models("quantize", file, tmp_path / "small.gguf", "--to", "q4_0")
    assert (result.code, result.text) == (0, f"{tmp_path / 'small.gguf'}\n")
    assert "rounded a second time" in result.err and "Q8_0" in result.err
    assert ModelFolder.open(tmp_path / "small.gguf").weights["model.layers.0.mlp.up_proj.weight"].about == "Q4_0"


def test_a_model_is_exported_once_and_replaced_only_by_force(
    models: Cli, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file, note = Path(f"{tiny_model.name}.gguf"), "gptcli: note: texts end at these too in the file: <|endoftext|>\n"
    assert models("export", tiny_model, "--gguf") == Result(0, f"{file}\n".encode(), note)
    first = file.read_bytes()
    models("export", tiny_model, "--gguf").fails(2, "already there", "--force")
    file.write_bytes(b"old")
    assert models("export", tiny_model, file, "--gguf", "--force").code == 0
    assert file.read_bytes() == first


MISUSED = {
    "no format": (["export", "MODEL"], 2, "the format is missing"),
    "a name for a file": (["quantize", "MODEL", "--to", "q8_0", "--name", "x"], 2, "--name is for int8 and int4"),
    "a file for a model": (["quantize", "MODEL", "x.gguf", "--to", "int8"], 2, "become a model, not a file"),
    "another type": (["quantize", "MODEL", "--to", "q3_k"], 2, "q3_k"),
    "no such model": (["export", "none/here", "--gguf", "x.gguf"], 4, "no such model"),
    "no such directory": (["export", "MODEL", "none/x.gguf", "--gguf"], 8, "is not a directory"),
}


@pytest.mark.parametrize("what", MISUSED)
def test_misuse_is_one_clear_error(
    what: str, models: Cli, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, code, message = MISUSED[what]
    models(*(tiny_model if each == "MODEL" else each for each in arguments)).fails(code, message)
    assert list(tmp_path.glob("*.gguf")) == []
