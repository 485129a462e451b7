"""What SECURITY.md promises: no command uses the network, runs a model's code, or reads outside of the model."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import sysconfig
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import ROOT
from tests.faults import audited
from tests.tiny import TEMPLATE, edit, make_model

# A new command is a line here. MODEL stands for the model's directory, OUT for one to write to.
COMMANDS = [
    "generate -m MODEL -n 2 hi", "generate -m MODEL -n 2 --chat hi",
    "generate -m MODEL -n 2 --json --logprobs 3 --quantize int8 hi", "chat -m MODEL -n 2 hi",
    "tokenize -m MODEL --text hi", "score -m MODEL FILE", "models show MODEL", "models verify MODEL", "models",
    "models export MODEL OUT/tiny.gguf --gguf", "bench -m MODEL -p 8 -n 2 --repeats 1", "cache", "help generate",
    "batch REQUESTS -o OUT/answers -m MODEL -n 2 --chat",
    "train FILE -o OUT/run -m MODEL --max-steps 1 --block-size 16 --sample hi",
]  # fmt: skip
# Files of Python, its libraries and the operating system may be read.
INSTALLED = (sys.prefix, sys.base_prefix, *site.getsitepackages(), *sysconfig.get_paths().values())
OURS = (ROOT / "gptcli", ROOT / "gptcli.egg-info", audited.__file__)  # the second is of an editable install
LIBRARIES = {os.path.realpath(path) for path in (*INSTALLED, *OURS)}
SYSTEM = ("/proc/", "/sys/", "/dev/", "/etc/", "/usr/", "/lib/", "/lib64/")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with Python files beside it, an untrusted template, and a secret outside of its directory."""
    model = make_model(tmp_path_factory.mktemp("promises") / "model")
    for name in ("modeling_tiny.py", "json.py", "torch.py", "tokenizers.py", "jinja2.py", "pip.py"):
        (model / name).write_text("raise SystemExit('I was run')")
    edit(model / "config.json", auto_map={"AutoModelForCausalLM": "modeling_tiny.LlamaForCausalLM"})
    edit(model / "tokenizer_config.json", chat_template=TEMPLATE + "{# not trusted #}")
    (model.parent / "secret").write_text("secret")
    (model / "requests.jsonl").write_text('{"prompt": "hi"}\n')
    (model / "text.txt").write_text("a b c d e f g h\n" * 20)
    return model


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_stays_offline_and_reads_and_runs_nothing_else(hostile: Path, tmp_path: Path, command: str) -> None:
    names = {"MODEL": hostile, "FILE": hostile / "text.txt", "REQUESTS": hostile / "requests.jsonl", "OUT": tmp_path}
    arguments = reduce(lambda text, name: text.replace(name, str(names[name])), names, command).split()
    report = tmp_path / "report"
    done = subprocess.run(
        [sys.executable, "-P", "-m", "tests.faults.audited", str(report), *arguments],
        cwd=hostile,  # where a relative import would look
        stdin=subprocess.DEVNULL,
        capture_output=True,
        # Python tries whether it can write where temporary files go.
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(tmp_path)},
        timeout=120,
    )
    seen: dict[str, Any] = json.loads(report.read_text())
    assert seen["code"] == 0, done.stderr
    assert seen["sockets"] == []
    copies = f"{os.environ['XDG_CACHE_HOME']}/gptcli/prepared"
    outside = [path for path in seen["read"] if not _is_allowed(path, hostile) and not path.startswith(copies)]
    own = (str(tmp_path / "answers"), str(tmp_path / "run"))  # batch and train go on with these
    assert [path for path in outside if not path.startswith(own)] == []
    assert [path for path in seen["written"] if not path.startswith(("/dev/", "/proc/", copies, str(tmp_path)))] == []
    assert [name for name, file in seen["modules"].items() if file.startswith(str(hostile))] == []
    own = f"({sys.executable!r}, [{sys.executable!r}, '-I', '-S', '-c',"
    assert [started for started in seen["started"] if not started.startswith(own)] == []
    if arguments[0] == "generate":
        assert str(hostile / "model.safetensors") in seen["read"]  # or the hook sees nothing


def _is_allowed(path: str, model: Path) -> bool:
    if Path(path).parent == Path(os.path.realpath(model)):
        return not path.endswith(".py")
    return path.startswith(SYSTEM) or any(path == root or path.startswith(root + os.sep) for root in LIBRARIES)
