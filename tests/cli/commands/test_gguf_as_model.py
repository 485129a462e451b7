"""Commands with a GGUF file as their model."""

from __future__ import annotations

from pathlib import Path

from tests.cli.conftest import Cli
from tests.gguf.tiny_gguf import Kind, write_gguf


def test_every_command_takes_a_file(cli: Cli, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", Kind.Q4_0)
    text = cli("generate", "-m", file, "the", "-t", "0", "-n", "4")
    assert text.code == 0 and text.out
    assert cli("generate", "-m", file, "the", "-t", "0", "-n", "4").out == text.out
    assert cli("chat", "-m", file, "the", "-t", "0", "-n", "4").code == 0
    assert cli("score", "-m", file, "--json", stdin=b"the 12").code == 0
    assert b"quantization\tQ4_0" in cli("models", "show", file).out
    assert b"verdict: no fault found; checksums and logits were not compared" in cli("models", "verify", file).out
    assert cli("bench", "-m", file, "-p", "8", "-n", "2", "--repeats", "1").code == 0
