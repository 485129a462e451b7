"""The compiled kernels compute what a checkpoint's stored weights mean."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import gptcli
from gptcli.checkpoint.folder import ModelFolder
from gptcli.checkpoint.load import Packing, load_decoder
from gptcli.checkpoint.weights.tensor_source import TensorSource
from gptcli.errors import OutOfMemory
from gptcli.kernels.bindings import BF16_LEVELS, Arithmetic
from gptcli.kernels.layers import CompiledEmbedding, CompiledExperts, CompiledLinear, can_compile
from gptcli.kernels.tensors import Library
from gptcli.quant.affine import AffineWeight
from gptcli.quant.gptq import gptq_weight
from gptcli.runtime import device_plan as device
from gptcli.runtime.device_plan import plan_for
from gptcli.runtime.engine import Extension
from gptcli.runtime.torch_engine import TorchEngine
from gptcli.runtime.weight_bytes import weight_bytes
from gptcli.settings import Dtype, Quantize, RuntimeConfig
from tests.parity import test_families
from tests.parity.reference import write_reference
from tests.parity.test_families import needed_library, relative_error
from tests.quant.repacked import IDS, Packed, logits_of, repack
from tests.quant.test_experts import FAMILIES, MLX, pack

SIZES = {"intermediate_size": 96, "num_hidden_layers": 2}


@pytest.fixture(scope="module")
def library() -> Library:
    return needed_library()


def engine_of(path: Path, library: Library, packing: Packing = "keep", **how: Any) -> TorchEngine:
    return test_families.engine_of(path, library=library, packing=packing, **how)


def decoded(engine: TorchEngine, tokens: Sequence[int] = IDS) -> Tensor:
    cache = engine.new_cache()
    return torch.stack([engine.decode(token, cache) for token in tokens])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tied", [False, True])
def test_weights_in_half_precision_stay_so_and_give_the_numbers_of_an_fp32_copy(
    dtype: torch.dtype, tied: bool, tmp_path: Path, library: Library
) -> None:
    path = write_reference(tmp_path, "llama", tie_word_embeddings=tied, **SIZES).path
    halves = {name: tensor.to(dtype) for name, tensor in load_file(path / "model.safetensors").items()}
    save_file(halves, path / "model.safetensors")
    wanted = logits_of(path)
    engine = engine_of(path, library)
    matrices = [module.matrix for module in engine.decoder.modules() if isinstance(module, CompiledLinear)]
    assert {matrix.weights.dtype for matrix in matrices if matrix.weights is not None} == {dtype}
    assert isinstance(engine.decoder.embed, CompiledEmbedding)
    assert relative_error(engine.logits(IDS), wanted) < 1e-5
    assert relative_error(decoded(engine), wanted) < 1e-5


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_weights_in_fewer_bytes_give_the_logits_of_plain_ones_to_the_bit(
    dtype: torch.dtype, tied: bool, tmp_path: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {**SIZES, "hidden_size": 64, "intermediate_size": 128}
    path = write_reference(tmp_path, "llama", tie_word_embeddings=tied, **sizes).path
    stored = {name: tensor.to(dtype) for name, tensor in load_file(path / "model.safetensors").items()}
    save_file(stored, path / "model.safetensors")
    less = engine_of(path, library)
    monkeypatch.setattr(Library, "coded", lambda self, weight: None)
    plain = engine_of(path, library)
    assert weight_bytes(plain.decoder) == sum(
        tensor.nbytes for name, tensor in stored.items() if tensor.ndim == 2 and (tied or "embed" not in name)
    )
    if library.level in ("avx512", *BF16_LEVELS):
        assert weight_bytes(less.decoder) < 0.93 * weight_bytes(plain.decoder)
    assert less.logits(IDS).equal(plain.logits(IDS))
    assert decoded(less).equal(decoded(plain))


def test_a_copy_of_a_checkpoint_in_fp32_takes_no_more_memory_than_the_checkpoint(
    tmp_path: Path, library: Library
) -> None:
    path = write_reference(tmp_path, "llama", **SIZES).path
    halves = {name: tensor.half() for name, tensor in load_file(path / "model.safetensors").items()}
    save_file(halves, path / "model.safetensors")
    of_halves = engine_of(path, library)
    save_file({name: tensor.float() for name, tensor in halves.items()}, path / "model.safetensors")
    of_copy = engine_of(path, library)
    assert weight_bytes(of_copy.decoder) == weight_bytes(of_halves.decoder)
    assert decoded(of_copy).equal(decoded(of_halves))


def test_a_checkpoint_of_mixed_precision_is_read_as_it_is(tmp_path: Path, library: Library) -> None:
    mixed = write_reference(tmp_path / "mixed", "llama", **SIZES).path
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    tensors = load_file(mixed / "model.safetensors")
    rounded = {name: tensor.to(dtypes[index % 3]) for index, (name, tensor) in enumerate(sorted(tensors.items()))}
    save_file(rounded, mixed / "model.safetensors")
    meant = write_reference(tmp_path / "meant", "llama", **SIZES).path
    save_file({name: tensor.float() for name, tensor in rounded.items()}, meant / "model.safetensors")
    wanted = logits_of(meant)
    assert logits_of(mixed).equal(wanted)
    assert relative_error(engine_of(mixed, library).logits(IDS), wanted) < 1e-5


@pytest.mark.parametrize(("packing", "bits"), [("int8", 8.5), ("int4", 5)])
def test_quantizing_takes_this_many_bits_per_weight(
    packing: Packing, bits: float, tmp_path: Path, library: Library
) -> None:
    path = write_reference(tmp_path, "llama", hidden_size=64, intermediate_size=128, num_hidden_layers=2).path
    decoder = engine_of(path, library, packing).decoder
    matrices = [module.matrix for module in decoder.modules() if isinstance(module, CompiledLinear)]
    layers = [matrix for matrix in matrices if matrix.rows != decoder.config.vocab_size]
    assert len(layers) == 8
    assert all(matrix.size * 8 == matrix.rows * matrix.columns * bits for matrix in layers)


@pytest.mark.parametrize(("dtype", "offset", "bytes_a_group"), [
    (torch.float16, 0, 16 + 4),
    (torch.bfloat16, 0, 16 + 4),
    (torch.float32, 0, 16 + 4),
    (torch.float32, 2**-20, 16 + 8),
    (torch.bfloat16, 2.0**17, 16 + 8),
])  # fmt: skip
def test_constants_that_are_all_numbers_of_fp16_take_16_bits(
    dtype: torch.dtype, offset: float, bytes_a_group: int, library: Library
) -> None:
    scales = (torch.randint(1, 32, (32, 4)) * 2**-12).to(dtype)
    biases = scales * -7
    biases[20, 2] += offset
    weight = AffineWeight(torch.randint(0, 256, (32, 64), dtype=torch.uint8), scales, biases, 4)
    linear = CompiledLinear(library, weight, None, "fp32")
    assert linear.matrix.size == 32 * 4 * bytes_a_group
    assert linear(torch.eye(128)).T.equal(weight.expanded())


@pytest.mark.parametrize(("zero", "bytes_a_group"), [(8, 16 + 2), (7, 16 + 4)])
def test_the_biases_of_a_symmetric_gptq_weight_are_not_kept(zero: int, bytes_a_group: int, library: Library) -> None:
    q, scales = torch.randint(0, 2**31, (4 * 4, 32)).int(), (torch.randint(1, 100, (4, 32)) * 2**-12).half()
    zeros = torch.full((4, 16), zero * 0x11, dtype=torch.uint8).view(torch.int32)
    weight = gptq_weight(q, zeros, scales, None, bits=4, group_size=32, zero_offset=0)
    assert isinstance(weight, AffineWeight)
    assert CompiledLinear(library, weight, None, "fp32").matrix.size == 32 * 4 * bytes_a_group


@pytest.mark.parametrize("packing", ["int8", "int4"])
def test_quantized_activations_cost_less_than_quantized_weights(
    packing: Packing, tmp_path: Path, library: Library
) -> None:
    path = write_reference(tmp_path, "llama", **SIZES).path
    dense, exact = logits_of(path), logits_of(path, packing)
    engine = engine_of(path, library, packing, arithmetic="int8")
    assert engine.kernels == library.level
    for logits in (engine.logits(IDS), decoded(engine)):
        assert 0 < relative_error(logits, exact) < 0.05
        assert (logits - dense).square().mean() < 1.5 * (exact - dense).square().mean() + 1e-4


@pytest.mark.parametrize("tied", [False, True])
def test_a_head_never_rounds_activations(tied: bool, tmp_path: Path, library: Library) -> None:
    path = write_reference(tmp_path, "llama", tie_word_embeddings=tied, **SIZES).path
    decoder = engine_of(path, library, "int8", arithmetic="int8").decoder
    head = decoder.embed if tied else decoder.head
    assert isinstance(head, CompiledEmbedding | CompiledLinear)
    weights = torch.stack([library.row(head.matrix, row) for row in range(head.matrix.rows)])
    for tokens in (1, 7, 130):
        hidden = torch.randn(tokens, decoder.config.hidden_size)
        assert relative_error(decoder.logits(hidden), decoder.final_norm(hidden) @ weights.T) < 1e-5


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tied", [False, True])
def test_a_half_that_was_asked_for_rounds_only_matrices(
    stored: torch.dtype, half: torch.dtype, tied: bool, tmp_path: Path, library: Library
) -> None:
    path = write_reference(tmp_path / "stored", "llama", tie_word_embeddings=tied, **SIZES).path
    tensors = {name: tensor.to(stored) for name, tensor in load_file(path / "model.safetensors").items()}
    save_file(tensors, path / "model.safetensors")
    meant = write_reference(tmp_path / "meant", "llama", tie_word_embeddings=tied, **SIZES).path
    rounded = {name: (tensor.to(half) if tensor.ndim == 2 else tensor).float() for name, tensor in tensors.items()}
    save_file(rounded, meant / "model.safetensors")
    engine = engine_of(path, library, "expand", half=half)
    matrices = [m.matrix for m in engine.decoder.modules() if isinstance(m, CompiledLinear | CompiledEmbedding)]
    assert len(matrices) == (9 if tied else 10)
    assert {matrix.weights.dtype for matrix in matrices if matrix.weights is not None} == {half}
    assert relative_error(engine.logits(IDS), logits_of(meant)) < 1e-5


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_packed_weights_are_rounded_to_a_half_or_kept_exact(
    half: torch.dtype, tmp_path: Path, library: Library
) -> None:
    path = write_reference(tmp_path / "dense", "llama", **SIZES).path
    packed, meant = repack(path, tmp_path, pack, **MLX)
    tensors, wanted = load_file(meant / "model.safetensors"), logits_of(meant)
    kept, expanded = (engine_of(packed, library, packing, half=half) for packing in ("keep", "dense"))
    assert relative_error(kept.logits(IDS), wanted) < 1e-5
    matrices = {name: tensor.to(half).float() for name, tensor in tensors.items() if tensor.ndim == 2}
    save_file(tensors | matrices, meant / "model.safetensors")
    assert relative_error(expanded.logits(IDS), logits_of(meant)) < 1e-5
    assert 1e-5 < relative_error(expanded.logits(IDS), wanted) < 0.1


def test_rows_of_which_the_kernels_cannot_take_all_become_dense_and_are_read_once(
    tmp_path: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mixed(name: str, weight: Tensor) -> Packed | None:
        if ".v_proj" not in name:
            return pack(name, weight)
        rows, columns = weight.shape
        scales, biases = (torch.rand(2, rows, columns // 32) * 0.1).half()
        made = AffineWeight(torch.randint(0, 256, (rows, columns * 3 // 8), dtype=torch.uint8), scales, biases, 3)
        return {"weight": made.packed.view(torch.uint32), "scales": scales, "biases": biases}, made.expanded()

    bits = {"group_size": 32, "bits": 3}
    quantization = MLX["quantization"] | {f"model.layers.{layer}.self_attn.v_proj": bits for layer in range(2)}
    path = write_reference(tmp_path / "dense", "llama", **SIZES).path
    packed, meant = repack(path, tmp_path, mixed, quantization=quantization)
    read, weight = list[str](), TensorSource.weight
    monkeypatch.setattr(TensorSource, "weight", lambda self, name: read.append(name) or weight(self, name))
    engine = engine_of(packed, library)
    assert len(read) == len(set(read))
    assert isinstance(engine.decoder.blocks[0].attention.qkv, CompiledLinear)
    assert relative_error(engine.logits(IDS), logits_of(meant)) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_experts_are_compiled_too(family: str, tmp_path: Path, library: Library) -> None:
    path = write_reference(tmp_path / "dense", family, **FAMILIES[family]).path
    packed, meant = repack(path, tmp_path, pack, **MLX)
    engine = engine_of(packed, library, arithmetic="int8")
    assert sum(isinstance(module, CompiledExperts) for module in engine.decoder.modules()) == 4
    assert engine.kernels == library.level
    errors = (engine.logits(IDS) - logits_of(meant)).abs().amax(-1)
    assert 0 < errors.median() < 0.05  # a router may choose another expert for a token here and there


def test_a_dtype_that_was_asked_for_is_that_of_the_activations(tmp_path: Path, library: Library) -> None:
    path = write_reference(tmp_path / "dense", "llama", **SIZES).path
    packed, meant = repack(path, tmp_path, pack, **MLX)
    wanted = logits_of(meant)
    engine = engine_of(packed, library)
    assert sum(isinstance(module, CompiledLinear) for module in engine.decoder.modules()) > 0
    assert relative_error(engine.logits(IDS), wanted) < 1e-5
    assert relative_error(decoded(engine), wanted) < 1e-5
    assert relative_error(engine_of(packed, library, arithmetic="int8").logits(IDS), wanted) > 1e-4


@pytest.mark.parametrize(("bits", "group", "scale", "bias", "known"), [
    (4, 32, torch.float16, torch.float16, True),
    (8, 96, torch.bfloat16, torch.bfloat16, True),
    (8, 48, torch.float16, torch.float16, False),
    (4, 16, torch.float16, torch.float16, False),
    (4, 32, torch.float16, torch.bfloat16, False),
    (8, 32, torch.float64, torch.float64, False),
    (3, 32, torch.float16, torch.float16, False),
])  # fmt: skip
def test_formats_that_the_kernels_cannot_read_are_left_to_torch(
    bits: int, group: int, scale: torch.dtype, bias: torch.dtype, known: bool, library: Library
) -> None:
    packed = torch.randint(0, 256, (16, 96 * bits // 8), dtype=torch.uint8)
    weight = AffineWeight(packed, torch.rand(16, 96 // group).to(scale), torch.rand(16, 96 // group).to(bias), bits)
    assert can_compile(weight) is known
    if known:
        for arithmetic in get_args(Arithmetic):
            got = CompiledLinear(library, weight, None, arithmetic)(torch.ones(1, 96))
            assert got.allclose(weight.dequantize(torch.float32).sum(1), rtol=1e-3)


def test_auto_computes_what_the_checkpoint_holds_and_int8_rounds_activations(
    tiny_model: Path, library: Library
) -> None:
    dtypes = ("auto", "fp32", "bf16", "fp16")
    plans = [gptcli.load(tiny_model, dtype=dtype, device="cpu").engine.plan for dtype in dtypes]
    fast = library.level != "portable"  # torch multiplies dense weights faster than portable code
    half = "bf16" if fast else "fp32"
    assert [plan.weights.arithmetic for plan in plans] == [half, "fp32", half, "fp32"]
    assert {plan.rounding for plan in plans} == {None}
    assert [plan.library is library for plan in plans] == [fast] * 4
    assert [plan.dtype_name for plan in plans] == ["fp32", "fp32", "bf16", "fp16"]
    assert [plan.weights.dtype == torch.float32 for plan in plans] == [True, True, fast, fast]
    wanted = "bf16" if library.level == "amx" else "int8"
    for quantize in ("int8", "int4"):
        engine = gptcli.load(tiny_model, quantize=quantize, device="cpu").engine
        assert (engine.plan.weights.arithmetic, engine.arithmetic, engine.failures) == (wanted, wanted, ())
        assert gptcli.load(tiny_model, quantize=quantize, dtype="fp32", device="cpu").engine.arithmetic == "fp32"


def test_a_large_packed_model_rounds_activations_where_there_are_no_bf16_products_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: Library
) -> None:
    if library.level == "portable":
        pytest.skip("torch multiplies dense weights here")
    path = write_reference(tmp_path / "dense", "llama", **SIZES).path
    packed, _ = repack(path, tmp_path, pack, **MLX)
    monkeypatch.setattr(device, "_LARGE", ModelFolder.open(packed).weight_bytes)

    def planned(model: Path, dtype: Dtype) -> TorchEngine:
        folder = ModelFolder.open(model)
        plan = plan_for(folder, RuntimeConfig(device="cpu", dtype=dtype))
        return TorchEngine(load_decoder(folder, plan.weights), plan, 64, load_s=0.0)

    engine = planned(packed, "auto")
    if library.level in BF16_LEVELS:
        assert (engine.arithmetic, engine.failures) == ("bf16", ())
    else:
        assert engine.arithmetic == "int8" and "rounded to 8 bits; --dtype fp32" in engine.failures[0]
    for model, dtype in ((packed, "fp32"), (path, "auto")):
        assert planned(model, dtype).failures == ()


def test_a_plan_needs_the_memory_of_what_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: Library
) -> None:
    if library.level == "portable":
        pytest.skip("torch multiplies dense weights here")
    path = write_reference(tmp_path / "dense", "llama", **SIZES).path
    folder = ModelFolder.open(repack(path, tmp_path, pack, **MLX)[0])

    def packing(dtype: Dtype, quantize: Quantize, free: int) -> Packing:
        monkeypatch.setattr(device, "free_bytes", lambda device: free)
        return plan_for(folder, RuntimeConfig(device="cpu", dtype=dtype, quantize=quantize)).weights.packing

    halves = 2 * folder.parameter_count
    assert folder.weight_bytes < halves
    assert packing("fp32", "auto", folder.weight_bytes) == "keep"
    assert packing("bf16", "auto", halves) == "keep"
    assert packing("bf16", "auto", 5 * halves) == "expand"
    assert packing("bf16", "none", halves) == "dense"
    for dtype in ("fp32", "bf16"):
        with pytest.raises(OutOfMemory):
            packing(dtype, "auto", folder.weight_bytes // 2)
        with pytest.raises(OutOfMemory):
            packing(dtype, "none", halves - 1)


@pytest.mark.parametrize("arithmetic", ["fp32", "bf16"])
@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_tokens_of_several_texts_are_rounded_only_where_prompts_are(
    family: str, arithmetic: Arithmetic, library: Library, tmp_path: Path
) -> None:
    path = write_reference(tmp_path / "dense", family, **FAMILIES.get(family, SIZES)).path
    engine = engine_of(repack(path, tmp_path, pack, **MLX)[0], library, arithmetic=arithmetic)
    alone, together = [[engine.new_cache() for _ in range(2)] for _ in range(2)]
    drafted = engine.new_cache()
    rounds = arithmetic == "bf16" and library.level in BF16_LEVELS
    for token in IDS[:6]:
        tokens = token, token + 1
        exact = torch.stack([engine.decode(each, cache) for each, cache in zip(tokens, alone, strict=True)])
        shared = engine.extend([Extension(cache, [each]) for each, cache in zip(tokens, together, strict=True)])
        found = torch.stack([logits for [logits] in shared])
        assert found.equal(exact) != rounds and relative_error(found, exact) < 5e-3
    assert torch.stack(list(engine.step(IDS[:6], drafted))).equal(decoded(engine, IDS[:6]))
