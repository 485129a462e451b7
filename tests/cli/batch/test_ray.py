"""A batch on a Ray cluster of this machine: two workers, of which one is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

LINES = 48


def workers_since(moment: float) -> list[psutil.Process]:
    """The processes that Ray started since then for our workers."""
    found = psutil.process_iter(["cmdline", "create_time"])
    ours = (each for each in found if (each.info["cmdline"] or [""])[0].startswith("ray::Worker"))
    return [each for each in ours if each.info["create_time"] >= moment]


def said(file: Path) -> list[Any]:
    """What the answers say, without what differs between runs."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [(line["id"], line["custom_id"], line["response"]["body"]["choices"]) for line in lines]


def test_a_killed_worker_loses_no_request(tiny_model: Path, tmp_path: Path) -> None:
    requests = tmp_path / "requests.jsonl"
    requests.write_text("".join(f'{{"prompt": "In town {n}", "seed": {n}, "max_tokens": 40}}\n' for n in range(LINES)))
    options = [requests, "-m", tiny_model, "--dtype", "fp32", "--parallel", "2", "-q"]
    command = [sys.executable, "-m", "gptcli", "batch", *map(str, options)]
    subprocess.run([*command, "-o", tmp_path / "here"], check=True)
    begun = time.time()
    with subprocess.Popen([*command, "-o", tmp_path / "there", "--ray", "local", "--workers", "2"]) as process:
        killed = False
        while process.poll() is None:
            time.sleep(0.005)
            if not killed and (tmp_path / "there").exists() and (tmp_path / "there").stat().st_size:
                (worker, *_) = workers_since(begun)
                os.kill(worker.pid, signal.SIGKILL)
                killed = True
    assert killed and process.returncode == 0
    assert said(tmp_path / "there") == said(tmp_path / "here")
