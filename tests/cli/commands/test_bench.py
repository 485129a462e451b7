from __future__ import annotations

from pathlib import Path

import pytest

import gptcli
from gptcli.runtime.weight_bytes import weight_bytes
from tests.cli.conftest import Cli
from tests.parity.reference import write_reference
from tests.quant.repacked import decoder_of


def test_bench_prints_an_object_with_every_figure(cli: Cli, tiny_model: Path) -> None:
    done = cli("bench", "-m", tiny_model, "-p", "16", "-p", "8", "-n", "4", "--repeats", "2", "--json")
    assert (done.code, done.err) == (0, "")
    record = done.json
    assert record["weight_bytes"] == 103_040 and record["kernels"] and record["bytes_a_second"] > 0
    assert record["arithmetic"] == "fp32"
    assert record["first_token_s"] > record["load_s"] > 0
    assert [point["prompt_tokens"] for point in record["lengths"]] == [8, 16]
    for point in record["lengths"]:
        rate = point["decode_tokens_per_s"]
        assert 0 < rate["least"] <= rate["median"] <= rate["greatest"]
        assert point["share_of_bandwidth"] <= 1
        assert point["bytes_a_second"] == pytest.approx(point["bytes_a_token"] * rate["median"])


def test_lengths_beyond_the_context_are_refused(cli: Cli, tiny_model: Path) -> None:
    done = cli("bench", "-m", tiny_model, "-p", "250", "-n", "16")
    assert done.code == 2 and "250 + 16 tokens are beyond the context of 256" in done.err


def test_a_token_moves_the_weights_it_is_multiplied_with(tiny_model: Path, tmp_path: Path) -> None:
    tied = gptcli.load(tiny_model, dtype="fp32", quantize="none").engine.decoder
    assert weight_bytes(tied) == sum(parameter.nbytes for parameter in tied.parameters() if parameter.dim() == 2)
    experts = {"num_local_experts": 4, "num_experts_per_tok": 1, "num_hidden_layers": 1}
    mixture = decoder_of(write_reference(tmp_path, "mixtral", **experts).path, "expand")
    block = mixture.blocks[0]
    shared = [block.attention.qkv.weight, block.attention.out.weight, block.mlp.router.weight, mixture.head.weight]
    chosen = (block.mlp.up.weight.nbytes + block.mlp.down.weight.nbytes) // 4
    assert weight_bytes(mixture) == sum(weight.nbytes for weight in shared) + chosen
