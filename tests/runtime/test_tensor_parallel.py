from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gptcli.checkpoint.folder import ModelFolder
from gptcli.checkpoint.rank_shard import RankShard
from gptcli.errors import UsageError
from gptcli.settings import RuntimeConfig
from tests.parity.test_families import ROW, relative_error
from tests.runtime.ranks import outputs

TITLES = ("llama", "qwen3", "gemma3", "mixtral", "gpt_oss", "gpt2", "qwen2_moe")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("split")
    return {title: ROW[title].write(root / title).path for title in TITLES}


def torchrun_command(ranks: int, *arguments: str | Path) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "-m"]
    return [*launcher, *map(str, arguments)]


def torchrun(ranks: int, *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    command = torchrun_command(ranks, *arguments)
    return subprocess.run(command, capture_output=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})


@pytest.mark.parametrize(("ranks", "titles"), [(2, TITLES), (4, ("gemma3", "gpt_oss"))])
def test_ranks_compute_what_one_process_does(
    folders: dict[str, Path], tmp_path: Path, ranks: int, titles: tuple[str, ...]
) -> None:
    done = torchrun(ranks, "tests.runtime.ranks", tmp_path, *(folders[title] for title in titles))
    assert done.returncode == 0, done.stderr.decode()
    for title in titles:
        folder = folders[title]
        alone = outputs(folder, RuntimeConfig(device="cpu", dtype="fp32", quantize="none"))
        together: dict[str, torch.Tensor] = torch.load(tmp_path / f"{title}.pt")
        for name, wanted in alone.items():
            assert relative_error(together[name], wanted) < 1e-5, (title, name)


def test_the_command_line_under_torchrun_prints_what_it_does_alone(tiny_model: Path) -> None:
    arguments = ("generate", "-m", tiny_model, "In a small town", "-n", "8", "--seed", "1", "--samples", "2")
    alone = subprocess.run([sys.executable, "-m", "gptcli", *map(str, arguments)], capture_output=True)
    together = torchrun(2, "gptcli", *arguments)
    assert (together.returncode, together.stdout) == (0, alone.stdout) and alone.stdout


@pytest.mark.parametrize(("title", "ranks", "what"), [
    ("bamba", 2, "layers with a state"),
    ("bloom", 2, "AttentionConfig.alibi"),
    ("olmo2", 2, "normalized over all heads"),
    ("deepseek_v3", 2, "latent attention"),
    ("llama", 3, "4 heads, of which 2 of keys"),
    ("llama", 113, "96 ids"),
])  # fmt: skip
def test_what_cannot_be_split_is_named(tmp_path: Path, title: str, ranks: int, what: str) -> None:
    config = ModelFolder.open(ROW[title].write(tmp_path).path).architecture.config
    with pytest.raises(UsageError, match=what):
        _ = RankShard(config, 0, ranks).config
