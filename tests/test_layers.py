from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "huggingface_hub", "gguf", "numpy")


def loaded_by(code: str, *modules: str) -> set[str]:
    """Which of the modules a fresh interpreter has imported after running code."""
    script = f"import sys\n{code}\nprint(*(name for name in {modules!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_imports_keep_to_the_layers() -> None:
    code = "from importlinter.cli import lint_imports_command as main; main()"
    done = subprocess.run([sys.executable, "-c", code, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_importing_gptcli_imports_nothing_heavy() -> None:
    assert loaded_by("import gptcli", *HEAVY, "rich", "typer", "tokenizers", "jinja2") == set()


@pytest.mark.parametrize(
    "code",
    ["from gptcli.cli.app import program; program()", "import gptcli.text.tokenizer", "import gptcli.models.catalog"],
)
def test_what_needs_no_weights_leaves_torch_alone(code: str) -> None:
    assert loaded_by(code, *HEAVY) == set()


def test_a_command_imports_no_other_command() -> None:
    names = ("generate", "chat", "score", "tokenize", "bench", "train", "models", "cache")
    commands = [f"gptcli.cli.commands.{name}" for name in names]
    code = "from gptcli.cli.app import run; run({!r})"
    for arguments in (["tokenize", "--help"], ["help", "tokenize"]):
        assert loaded_by(code.format(arguments), *commands) == {"gptcli.cli.commands.tokenize"}


def test_without_tools_nothing_of_them_is_imported() -> None:
    calls = ("gptcli.tools.formats", "gptcli.tools.splitter", "gptcli.text.chat_templates.tool_call_style")
    code = "import gptcli.cli.commands.chat, gptcli.cli.commands.generate, gptcli.generation.completion"
    assert loaded_by(code, *calls) == set()


def test_describing_a_model_leaves_torch_alone(tiny_model: Path) -> None:
    code = (
        "from gptcli.language_model import LanguageModel; from gptcli.settings import RuntimeConfig\n"
        f"lm = LanguageModel.open({str(tiny_model)!r}, RuntimeConfig()); lm.template; lm.stop_ids; lm.sampling_defaults"
    )
    assert loaded_by(code, *HEAVY) == set()


def test_generating_never_imports_transformers(tiny_model: Path) -> None:
    code = f"import gptcli; list(gptcli.load({str(tiny_model)!r}).generate('a', max_tokens=2))"
    assert loaded_by(code, "transformers", "torch") == {"torch"}
