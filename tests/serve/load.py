"""Sixty-four clients of a server of a tiny model, a third of whom leave early: python -m tests.serve.load SECONDS."""

from __future__ import annotations

import http.client
import json
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from tests.cli.conftest import GPTCLI
from tests.tiny import make_model

CLIENTS, KINDS = 64, 40
Counts = Counter[str]


def body(kind: int) -> dict[str, Any]:
    """A request of one of many kinds: texts and lengths differ, and each has one answer."""
    prompt = "In a small town " * (1 + kind % 6)
    return {"prompt": prompt, "max_tokens": 2 + 5 * kind % 90, "seed": kind, "temperature": 1.0, "ignore_eos": True}


def ask(port: int, body: dict[str, Any], leave_after: float | None = None) -> str:
    """The text of an answer; empty for a client that leaves before its end."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/v1/completions", json.dumps(body | {"stream": leave_after is not None}))
    if leave_after is not None:
        time.sleep(leave_after)
        connection.close()
        return ""
    response = connection.getresponse()
    data = json.loads(response.read())
    connection.close()
    return str(data["choices"][0]["text"]) if response.status == 200 else f"status {response.status}"


def client(port: int, seed: int, ends: float, alone: list[str], counts: Counts) -> None:
    """Asks until the end, and counts the outcomes."""
    draw = random.Random(seed)
    while time.monotonic() < ends:
        kind = draw.randrange(KINDS)
        if draw.random() < 1 / 3:
            ask(port, body(kind), leave_after=draw.random() / 5)
            counts["left"] += 1
        else:
            counts["as alone" if ask(port, body(kind)) == alone[kind] else "other"] += 1


def main(seconds: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [*GPTCLI, "serve", "-m", str(make_model(Path(folder) / "tiny")), "--port", "0", "--queue", "128"]
        command += ["--device", "cpu", "--dtype", "fp32"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            found = re.search(r":(\d+)$", process.stderr.readline().strip())
            port = int(found[1])
            threading.Thread(target=process.stderr.read, daemon=True).start()
            alone = [ask(port, body(kind)) for kind in range(KINDS)]
            counts, begins = Counts(), time.monotonic()
            clients = [
                threading.Thread(target=client, args=(port, seed, begins + seconds, alone, counts))
                for seed in range(CLIENTS)
            ]
            for each in clients:
                each.start()
            server, memory = psutil.Process(process.pid), []
            while any(each.is_alive() for each in clients):
                memory.append(server.memory_info().rss >> 20)
                time.sleep(1)
            waiting = http.client.HTTPConnection("127.0.0.1", port)
            waiting.request("GET", "/metrics")
            left = re.search(r"^gptcli_waiting (\S+)", waiting.getresponse().read().decode(), re.MULTILINE)
            process.terminate()
        quarter = max(1, len(memory) // 4)
        print(f"{time.monotonic() - begins:.0f} s: {dict(counts)}; waiting at the end: {left and left[1]}")
        print(f"memory: {max(memory[:quarter])} MB in the first quarter, {max(memory[-quarter:])} MB in the last")


if __name__ == "__main__":
    main(float(sys.argv[1]))
