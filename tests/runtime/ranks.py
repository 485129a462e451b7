"""What each rank of `test_tensor_parallel` runs. Rank 0 writes the logits and ids of each model; the others follow."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable
from pathlib import Path

import torch

from gptcli.checkpoint.folder import ModelFolder
from gptcli.runtime.engine import Extension, keep_common
from gptcli.runtime.loader import Loader
from gptcli.runtime.ranks import ranks_here
from gptcli.runtime.torch_engine import TextCache, TorchEngine
from gptcli.settings import RuntimeConfig

IDS = [7, 3, 3, 90, 41, 12, 66, 5, 28, 77, 54, 9, 31, 2, 88, 60, 17, 44, 23, 71, 8, 95, 36, 50]


def together(engine: TorchEngine, texts: Iterable[tuple[TextCache, list[int]]]) -> torch.Tensor:
    return torch.stack([*itertools.chain(*engine.extend([Extension(*text) for text in texts]))])


def outputs(folder: Path, runtime: RuntimeConfig) -> dict[str, torch.Tensor]:
    """Logits of IDS as a prompt, of texts that share steps, and after a text is truncated; scores of all IDS."""
    engine = Loader(ModelFolder.open(folder), runtime, ctx_size=64, announced=None).load_full()
    cache = engine.new_cache()
    prompt = engine.prefill(IDS[:20], cache)
    assert prompt is not None
    caches = [engine.copy_of(cache, length) for length in (20, 20, 7)]
    shared = together(engine, [*zip(caches, [[5], [6], IDS[7:11]], strict=True), (engine.new_cache(), IDS[:3])])
    after_end = together(engine, zip(caches[1:], [[8], [9]], strict=True))
    keep_common(cache, IDS[:12])
    again = engine.prefill(IDS[12:], cache)
    assert again is not None
    chunks = engine.score_tokens(IDS, engine.new_cache(), IDS[1:], 96, 0)
    scores = torch.tensor([score.logprob for chunk in chunks for score in chunk])
    return {"prompt": prompt, "shared": shared, "after_end": after_end, "again": again, "scores": scores}


def main() -> None:
    out, *folders = map(Path, sys.argv[1:])
    ranks = ranks_here()
    assert ranks is not None
    from gptcli.runtime.tensor_parallel import dismiss, follow

    if ranks.rank > 0:
        follow(ranks)
        return
    for folder in folders:
        runtime = RuntimeConfig(device="cpu", dtype="fp32", quantize="none")
        torch.save(outputs(folder, runtime), out / f"{folder.name}.pt")
    dismiss()


if __name__ == "__main__":
    main()
