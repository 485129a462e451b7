"""Texts of many clients beside llama-server: the same file, slots, threads and requests, the two in turns.

python benchmarks/compare_llama_server.py --llama-server PATH [FILE.gguf ...]
    [--slots 8] [--clients 8] [--requests 32] [--repeats 3] [--threads N]

Without a file, the default model's weights are written as F16 and as Q8_0. Each request has a prompt and an answer of
its own length, and goes on where the model would end it, so that both generate as many tokens. Prints the medians of
tokens a second, and of the turns' ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

from turns import dense_weights, write_dense

from gptcli.checkpoint.folder import ModelFolder
from gptcli.models.catalog import DEFAULT_MODEL
from gptcli.models.locate import locate

CONTEXT = 1024  # tokens of a slot
WORDS = "the cat sat on a mat and looked at many small birds while rain fell over green hills of a town".split()


def bodies(seed: int, count: int) -> list[dict[str, Any]]:
    """Requests whose prompts have 10 to 200 words, and whose answers 16 to 128 tokens."""
    random = Random(seed)
    return [
        {
            "prompt": " ".join(random.choices(WORDS, k=random.randint(10, 200))),
            "max_tokens": random.randint(16, 128),
            "temperature": 0.8,
            "seed": number,
            "ignore_eos": True,
        }
        for number in range(count)
    ]


def post(port: int, body: dict[str, Any]) -> int:
    """The generated tokens of a request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = json.loads(connection.getresponse().read())
    connection.close()
    generated: int = answer["usage"]["completion_tokens"]
    assert generated == body["max_tokens"], answer
    return generated


def rate(port: int, asked: list[dict[str, Any]], clients: int) -> float:
    """Tokens a second of requests that clients ask one after another."""
    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        tokens = sum(pool.map(lambda body: post(port, body), asked))
    return tokens / (time.perf_counter() - started)


@contextlib.contextmanager
def running(command: list[str]) -> Iterator[int]:
    """A server that a command starts, by its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not ready(port):
            if process.poll() is not None:
                raise SystemExit(f"it ended: {' '.join(command)}")
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait()


def ready(port: int) -> bool:
    """Whether a server answers."""
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False


def compare(file: Path, options: argparse.Namespace) -> str:
    """A row: both servers' tokens a second, and the ratio."""
    slots, threads = str(options.slots), str(options.threads)
    gptcli = [sys.executable, "-m", "gptcli"]
    ours = [*gptcli, "serve", "-m", str(file), "--parallel", slots, "--threads", threads, "--device", "cpu", "-q"]
    theirs = [options.llama_server, "-m", str(file), "-np", slots, "-c", str(CONTEXT * options.slots)]
    theirs += ["-t", threads, "-tb", threads, "-ngl", "0"]
    with running(ours) as first, running(theirs) as second:
        pairs = []
        for repeat in range(options.repeats + 1):  # the first warms up
            asked = bodies(repeat, options.requests if repeat else options.slots)
            pairs.append((rate(first, asked, options.clients), rate(second, asked, options.clients)))
    mine, other = (statistics.median(each) for each in zip(*pairs[1:], strict=True))
    ratio = statistics.median(own / their for own, their in pairs[1:])
    return f"| {file.stem} | {mine:.0f} | {other:.0f} | {ratio:.2f} |"


def write_default(folder: Path) -> Iterator[Path]:
    """The default model's weights as files that both read."""
    gptcli = [sys.executable, "-m", "gptcli", "models"]
    default = ModelFolder.open(locate(DEFAULT_MODEL))
    write_dense(default, dense_weights(default), "fp16", folder / "fp16")
    for command in (["export", str(folder / "fp16"), "--gguf"], ["quantize", str(folder / "fp16"), "--to", "q8_0"]):
        file = folder / f"{DEFAULT_MODEL}-{command[-1].removeprefix('--gguf') or 'f16'}.gguf"
        subprocess.run([*gptcli, *command, str(file)], check=True, stdout=subprocess.DEVNULL)
        yield file


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("files", type=Path, nargs="*")
    parser.add_argument("--llama-server", required=True)
    for name, default in {"slots": 8, "clients": 8, "requests": 32, "repeats": 3, "threads": os.cpu_count()}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = options.files or list(write_default(Path(folder)))
        print(f"{options.slots} slots, {options.clients} clients, {options.threads} threads\n")
        print("| weights | tok/s: ours | llama-server | ratio |\n|---|---|---|---|")
        for file in files:
            print(compare(file, options), flush=True)


if __name__ == "__main__":
    main()
