"""Adapters: PEFT and gptcli read each other's; they apply on every engine or are merged into a model."""

from __future__ import annotations

import json
import os
import re
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import gptcli
from gptcli.checkpoint import adapters
from gptcli.checkpoint.adapters import Adapter
from gptcli.checkpoint.safetensors_header import TensorInfo, read_header
from gptcli.cli.app import run
from gptcli.errors import BrokenCheckpoint, GptcliError, InputError
from tests.cli.conftest import GPTCLI, Cli
from tests.parity.reference import write_reference
from tests.parity.test_families import GPT
from tests.tiny import TEXT, make_model, make_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")
IDS = torch.randint(3, 96, (24,), generator=torch.Generator().manual_seed(1)).tolist()
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt2": GPT,
    "gptj": GPT | {"rotary_dim": 8, "tie_word_embeddings": False},
    "gpt_neox": {},
    "phi3": {},
    "qwen2_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 40},
}  # fmt: skip


def write_model(path: Path, model_type: str) -> Path:
    model = write_reference(path, model_type, **FAMILIES[model_type]).path
    make_tokenizer().save(str(model / "tokenizer.json"))
    return model


@torch.no_grad()
def theirs(model: Path, adapter: Path | None = None) -> Tensor:
    reference = AutoModelForCausalLM.from_pretrained(model, attn_implementation="eager", dtype=torch.float32)
    if adapter is not None:
        reference = PeftModel.from_pretrained(reference, adapter)
    logits: Tensor = reference(torch.tensor([IDS])).logits[0]
    return logits


def ours(model: Path, *adapters: str | Path, **options: Any) -> Tensor:
    lm = gptcli.load(model, device="cpu", **({"dtype": "fp32", "adapter": adapters} | options))
    return lm.logits(IDS)


def close(left: Tensor, right: Tensor) -> bool:
    return bool((left - right).abs().max() < 1e-5 * right.abs().max())


@pytest.mark.parametrize("model_type", FAMILIES)
def test_an_adapter_that_we_train_gives_our_logits_in_peft(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = write_model(tmp_path / "model", model_type), tmp_path / "out"
    (data := tmp_path / "data.txt").write_bytes(bytes(range(97, 123)) * 20)
    edit_vocabulary(model)
    arguments = ["train", str(data), "-m", str(model), "-o", str(out), "--block-size", "32", "--lora", "3", "-q"]
    assert run([*arguments, "--learning-rate", "0.03", "--max-steps", "4"]) == 0
    wanted = theirs(model, out)
    assert close(ours(model, out), wanted)
    assert not close(ours(model), wanted)
    monkeypatch.setenv("GPTCLI_KERNELS", "off")
    assert close(ours(model, out), wanted)


def edit_vocabulary(model: Path) -> None:
    """Shrinks the tokenizer to the 96 tokens of the reference's models."""
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    kept = {piece: id for piece, id in vocabulary.items() if id < 96}
    tokenizer["model"] |= {"vocab": kept, "merges": []}
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))


def write_adapter(path: Path, model: Path, seed: int, **config: Any) -> Path:
    """An adapter made by PEFT, every factor random."""
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    targets = config.pop("target_modules", "all-linear")
    adapted = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", target_modules=targets, **config))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.1)
    adapted.save_pretrained(path)
    return path


@pytest.mark.parametrize("config", [
    {"r": 4, "lora_alpha": 3},
    {"r": 4, "lora_alpha": 3, "use_rslora": True},
    {"r": 4, "rank_pattern": {"q_proj": 2, "model.layers.1.mlp.up_proj": 7}, "alpha_pattern": {"v_proj": 32}},
    {"r": 2, "target_modules": ["q_proj", "v_proj", "down_proj"], "fan_in_fan_out": True, "lora_dropout": 0.1},
    {"r": 2, "target_modules": r".*layers\.\d+\.(self_attn|mlp)\.(o_proj|gate_proj)", "init_lora_weights": "gaussian"},
    {"r": 2, "target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
    {"r": 4, "exclude_modules": ["k_proj"], "alpha_pattern": {r"^model\.layers\.0\.self_attn.*": 5}},
])  # fmt: skip
def test_an_adapter_of_peft_gives_its_logits_here(config: dict[str, Any], tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", "llama")
    adapter = write_adapter(tmp_path / "adapter", model, 1, **config)
    assert close(ours(model, adapter), theirs(model, adapter))


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A model and two adapters of it."""
    model = write_model(tmp_path / "model", "llama")
    return model, *(write_adapter(tmp_path / f"a{seed}", model, seed, r=3) for seed in (1, 2))


def test_several_adapters_add_up_with_their_weights(pair: tuple[Path, Path, Path]) -> None:
    model, first, second = pair
    base = AutoModelForCausalLM.from_pretrained(model, attn_implementation="eager", dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, first, "first")
    adapted.load_adapter(second, "second")
    adapted.add_weighted_adapter(["first", "second"], [0.5, 1.0], "both", "cat")
    adapted.set_adapter("both")
    with torch.no_grad():
        wanted = adapted(torch.tensor([IDS])).logits[0]
    assert close(ours(model, f"{first}=0.5", second), wanted)


def test_a_merged_model_answers_as_the_adapted_one_here_and_in_transformers(
    pair: tuple[Path, Path, Path], cli: Cli
) -> None:
    model, first, second = pair
    done = cli("models", "merge", model, "--adapter", first, "--adapter", f"{second}=0.5", "--name", "merged", "-q")
    assert done.code == 0, done.err
    merged = Path(done.out.decode().strip())
    live = ours(model, first, f"{second}=0.5")
    assert close(ours(merged), live)
    assert close(theirs(merged), live)
    again = cli("models", "merge", first, "--name", "one")
    assert again.code == 0 and close(ours(Path(again.out.decode().strip())), ours(first))
    assert cli("models", "merge", model).code == 2


def test_every_command_takes_an_adapter_and_an_adapter_is_its_model(tmp_path: Path, cli: Cli) -> None:
    model = make_model(tmp_path / "model")
    adapter = write_adapter(tmp_path / "adapter", model, 3, r=8, lora_alpha=64)
    (text := tmp_path / "text").write_text(TEXT)
    (requests := tmp_path / "requests.jsonl").write_text('{"prompt": "In a small", "custom_id": "a"}\n')
    greedy = ("-t", "0", "-n", "6", "--ignore-eos")
    commands = [
        ("generate", *greedy, "In a small"), ("chat", *greedy, "In a small"), ("score", "--json", text),
        ("batch", requests, *greedy),
    ]  # fmt: skip
    for command, *rest in commands:
        chosen = ("-m", model), ("-m", model, "--adapter", adapter), ("-m", adapter)
        plain, adapted, alone = (cli(command, *options, *rest).out for options in chosen)
        assert adapted != plain, command
        assert _without_names(alone) == _without_names(adapted), command


def test_a_server_and_a_benchmark_take_an_adapter(tmp_path: Path, cli: Cli) -> None:
    model = make_model(tmp_path / "model")
    adapter = write_adapter(tmp_path / "adapter", model, 3, r=8, lora_alpha=64)
    options = ("-m", str(model), "--adapter", str(adapter))
    said = cli("generate", *options, "-t", "0", "-n", "6", "--ignore-eos", "In a small").out.decode()
    with subprocess.Popen([*GPTCLI, "serve", *options, "--port", "0"], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        (port,) = re.findall(r"http://127\.0\.0\.1:(\d+)", next(line for line in process.stderr if "http://" in line))
        body = {"prompt": "In a small", "temperature": 0, "max_tokens": 6, "ignore_eos": True}
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            assert json.load(answer)["choices"][0]["text"] == said
        process.terminate()
    bench = ("bench", "-p", "8", "-n", "2", "--repeats", "1")
    assert cli(*bench, *options).code == 0
    assert cli(*bench, "-m", make_model(tmp_path / "other", num_hidden_layers=1), "--adapter", adapter).code == 3


def test_an_adapter_is_merged_with_what_packed_weights_stand_for(tmp_path: Path, cli: Cli) -> None:
    model = make_model(tmp_path / "model")
    adapter = write_adapter(tmp_path / "adapter", model, 3, r=8, lora_alpha=64)
    packed = Path(cli("models", "quantize", model, "--to", "int4", "--name", "packed", "-q").out.decode().strip())
    done = cli("models", "merge", packed, "--adapter", adapter, "--name", "merged", "-q")
    assert done.code == 0, done.err
    merged = Path(done.out.decode().strip())
    live = ours(packed, adapter, quantize="none")
    assert close(ours(merged), live)
    assert not close(ours(packed, quantize="none"), live)
    assert close(theirs(merged), live)


def _without_names(out: bytes) -> bytes:
    return re.sub(rb'"(model|request_id|id|created)": ("[^"]*"|\d+)', b"", out)


@pytest.mark.parametrize(("change", "said"), [
    ({"use_dora": True}, "use_dora = True is not supported"),
    ({"peft_type": "LOHA"}, "'LOHA' is not supported"),
    ({"bias": "all"}, "bias = 'all' is not supported"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"lora_bias": True}, "lora_bias"),
    ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights = 'pissa_niter_4'"),
    ({"init_lora_weights": "olora"}, "init_lora_weights = 'olora'"),
    ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication"),
    ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
    ({"target_parameters": ["experts.gate_up_proj"]}, "target_parameters"),
    ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
    ({"some_field_of_tomorrow": 1}, "some_field_of_tomorrow"),
    ({"r": 5}, "has rank 3, adapter_config.json says 5"),
    ({"r": None}, "has rank 3"),
    ({"rank_pattern": {"q_proj": 8}}, "q_proj has rank 3, adapter_config.json says 8"),
    ({"target_modules": ["q_proj"]}, "is none of the modules"),
    ({"target_modules": None}, "is none of the modules"),
    ({"layers_to_transform": [1]}, r"layers\.0\..*is none of the modules"),
    ({"layers_to_transform": 1}, r"layers\.0\..*is none of the modules"),
    ({"exclude_modules": ["v_proj"]}, "v_proj has weights, but is none of the modules"),
    ({"lora_alpha": 10**400}, "lora_alpha must be a number"),
    ({"alpha_pattern": ["q_proj"]}, "alpha_pattern must be an object"),
    ({"rank_pattern": "q_proj"}, "rank_pattern must be an object"),
    ({"alpha_pattern": {"*": 4}}, "is no expression"),
    ({"alpha_pattern": {"([a-z._0-9]+)+!": 4}}, "expression .* is not supported"),
    ({"alpha_pattern": {".*.*.*!": 4}}, "expression .* is not supported"),
])  # fmt: skip
def test_what_an_adapter_has_and_we_do_not_apply_is_refused(
    change: dict[str, Any], said: str, pair: tuple[Path, Path, Path]
) -> None:
    model, adapter, _ = pair
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(GptcliError, match=said):
        ours(model, adapter)


def test_an_adapter_that_is_replaced_while_it_is_read_is_refused(
    pair: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, first, second = pair

    def replaced(path: Path) -> dict[str, TensorInfo]:
        header = read_header(path)
        os.replace(second / path.name, path)  # of the same size
        return header

    monkeypatch.setattr(adapters, "read_header", replaced)
    with pytest.raises(InputError, match="another process has changed it meanwhile"):
        Adapter.open(first)


def test_a_layer_with_a_number_of_thousands_of_digits_is_refused(tmp_path: Path) -> None:
    layer = f"layers.{'1' * 5000}.q_proj"
    save_file(
        {f"{layer}.lora_{side}.weight": torch.zeros(1, 1) for side in "AB"}, tmp_path / "adapter_model.safetensors"
    )
    config = {"peft_type": "LORA", "r": 1, "target_modules": ["q_proj"], "layers_to_transform": [1]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(BrokenCheckpoint, match="is none of the modules"):
        Adapter.open(tmp_path)


@pytest.mark.parametrize(("config", "said"), [
    ({"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens"),
    ({"target_modules": ["q_proj", "lm_head"]}, "lm_head"),
    ({"target_modules": ["q_proj"], "modules_to_save": ["norm"]}, "modules_to_save"),
    ({"target_modules": ["q_proj"], "use_dora": True}, "use_dora"),
    ({"target_modules": ["o_proj"], "init_lora_weights": "pissa"}, "pissa"),
])  # fmt: skip
def test_an_adapter_of_peft_that_reaches_further_is_refused_by_name(
    config: dict[str, Any], said: str, tmp_path: Path
) -> None:
    model = write_model(tmp_path / "model", "llama")
    adapter = write_adapter(tmp_path / "adapter", model, 1, r=2, **config)
    with pytest.raises(GptcliError, match=said):
        ours(model, adapter)


@pytest.mark.parametrize(("rank", "twice", "said"), [(0, False, "has rank 0"), (3, True, "has two factors A")])
def test_factors_without_a_rank_or_given_twice_are_refused(
    rank: int, twice: bool, said: str, pair: tuple[Path, Path, Path]
) -> None:
    model, adapter, _ = pair
    factors = load_file(adapter / "adapter_model.safetensors")
    module = next(name for name in factors if name.endswith("lora_A.weight")).removesuffix("A.weight")
    down, up = f"{module}A.weight", f"{module}B.weight"
    factors |= {down: factors[down][:rank].clone(), up: factors[up][:, :rank].clone()}
    if twice:
        factors[f"{module}A.default.weight"] = factors[down].clone()
    save_file(factors, adapter / "adapter_model.safetensors")
    with pytest.raises(BrokenCheckpoint, match=said):
        ours(model, adapter)


def test_an_adapter_of_another_model_is_refused(pair: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, adapter, _ = pair
    with pytest.raises(BrokenCheckpoint, match="an adapter of another model"):
        ours(write_model(tmp_path / "other", "gpt2"), adapter)
    smaller = make_model(tmp_path / "smaller", num_hidden_layers=4)
    with pytest.raises(BrokenCheckpoint, match="do not fit it"):
        ours(smaller, adapter)
    with pytest.raises(InputError, match="not an adapter"):
        ours(smaller, tmp_path)
