"""What the documents say is so: their examples print what they show, and the files and names they mention exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

import gptcli
from gptcli.checkpoint.registry import FAMILIES
from gptcli.cli.app import program
from gptcli.errors import ExitCode
from gptcli.kernels.bindings import functions

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "weights" / "README.md"])
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
README, CONTRIBUTING = TEXTS["README.md"], TEXTS["CONTRIBUTING.md"]
DECISIONS = {name: text for name, text in TEXTS.items() if name.startswith("docs/decisions/")}


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of a page that are in this language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def without_code(text: str) -> str:
    """A page less its code blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


# A block that stands in two pages is run once.
CONSOLE = {
    block: f"{name}-{number}" for name, text in TEXTS.items() for number, block in enumerate(blocks(text, "console"))
}
PYTHON = [name for name, text in TEXTS.items() if blocks(text, "python")]
GPTCLI: Any = typer.main.get_command(program())


@pytest.fixture
def environment(real_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Finds gptcli and the default model. Snapshots are shared, so that most examples start quickly."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    cache = tmp_path_factory.getbasetemp() / "cache"
    return os.environ | {"PATH": path, "GPTCLI_WEIGHTS": str(real_weights), "XDG_CACHE_HOME": str(cache)}


def printed(command: list[str], environment: dict[str, str], directory: Path) -> str:
    """What a command writes to stdout and stderr, without the line break at its end."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.run(command, **pipes, env=environment, cwd=directory, text=True).stdout.rstrip("\n")


def computed(block: str) -> bool:
    """Whether a model computes what the block shows."""
    return re.search(r"gptcli (generate|chat|score|bench)", block) is not None


def levels() -> list[str]:
    """The values of GPTCLI_KERNELS that matter here. At the portable level torch runs the default model."""
    library = functions()
    return ["off", *(level for level in (library.levels() if library else ()) if level != "portable")]


# What README shows is tried at every level, what other pages show at the one that this machine has by itself.
EXAMPLES = [
    pytest.param(block, level, id=f"{name}-{level or 'default'}")
    for block, name in CONSOLE.items()
    for level in (levels() if computed(block) and name.startswith("README") else [""])
]


def text_and_numbers(output: str) -> tuple[str, list[float]]:
    """Sets numbers of four and more decimals apart: the last digits of a sum in fp32 are not the same everywhere."""
    long = r"-?\d+\.\d{4,}"
    return re.sub(long, "#", output), [float(number) for number in re.findall(long, output)]


@pytest.mark.real
@pytest.mark.parametrize(("block", "level"), EXAMPLES)
def test_examples_print_what_their_page_shows(
    block: str, level: str, environment: dict[str, str], tmp_path: Path
) -> None:
    assert block.startswith("$ ")
    environment["GPTCLI_KERNELS"] = level
    for example in block.removeprefix("$ ").rstrip("\n").split("\n$ "):
        command, _, shown = example.partition("\n")
        text, numbers = text_and_numbers(printed(["bash", "-c", command], environment, tmp_path))
        shown_text, shown_numbers = text_and_numbers(shown.rstrip("\n"))
        assert text == shown_text
        assert numbers == pytest.approx(shown_numbers, rel=1e-3)


@pytest.mark.real
@pytest.mark.parametrize("name", PYTHON)
def test_python_of_a_page_prints_what_the_page_shows(name: str, environment: dict[str, str], tmp_path: Path) -> None:
    code = "".join(blocks(TEXTS[name], "python"))
    shown = "".join(re.findall(r"^```python\n.*?^```\n\n```text\n(.*?)^```$", TEXTS[name], re.DOTALL | re.MULTILINE))
    output = printed([sys.executable, "-W", "error", "-c", code], environment, tmp_path)
    assert output == shown.rstrip("\n") if shown else "Traceback" not in output


def test_there_are_examples_to_check() -> None:
    assert len(CONSOLE) >= 25
    assert set(PYTHON) >= {"README.md", "docs/python.md"}


def test_every_command_has_a_page_that_begins_with_its_name() -> None:
    for name in set(GPTCLI.commands) - {"help"}:
        assert TEXTS[f"docs/{name}.md"].startswith(f"# gptcli {name}\n")


def test_every_option_that_a_page_names_exists() -> None:
    commands = [GPTCLI, *GPTCLI.commands.values(), *GPTCLI.commands["models"].commands.values()]
    options = [option for command in commands for option in command.params]
    known = {"--help"}.union(*([*option.opts, *option.secondary_opts] for option in options))
    for name, text in TEXTS.items():
        spans = " ".join(span for span in re.findall(r"`([^`]+)`", without_code(text)) if not foreign(span))
        unknown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", spans)) - known
        assert not unknown, f"{name}: {unknown}"


def foreign(span: str) -> bool:
    """Whether it is the command line of another program."""
    return span.startswith(("python", "pip", "pytest", "ruff", "tests/", "perf"))


@pytest.mark.parametrize("code", ExitCode)
def test_every_exit_code_is_explained(code: ExitCode) -> None:
    assert re.search(rf"^\| {code.value} \|", TEXTS["docs/exit-codes.md"], re.MULTILINE)


def test_the_table_of_model_types_is_what_models_supported_prints() -> None:
    command = [sys.executable, "-m", "gptcli", "models", "--supported"]
    out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    rows = [tuple(line.split("\t")) for line in out.splitlines()]
    assert len(rows) == len(FAMILIES)
    assert re.findall(r"^\| `(\S+)` \| (.*) \|$", TEXTS["docs/model-types.md"], re.MULTILINE) == rows


def test_the_number_of_model_types_is_the_same_everywhere() -> None:
    for name, text in TEXTS.items():
        for number in re.findall(r"\b(\d+) model types", text):
            assert name == "docs/reliability.md" or int(number) == len(FAMILIES), name


def test_the_python_names_in_the_documents_exist() -> None:
    code = "".join("".join(blocks(TEXTS[page], "python")) for page in PYTHON)
    assert [name for name in re.findall(r"gptcli\.([A-Za-z]\w*)", code) if not hasattr(gptcli, name)] == []


def test_every_test_that_the_documents_name_is_there() -> None:
    written = "\n".join(file.read_text(encoding="utf-8") for file in ROOT.glob("tests/**/test_*.py"))
    named = set(re.findall(r"\btest_[a-z0-9_]{20,}", "".join(TEXTS.values())))
    assert len(named) > 50
    assert [name for name in sorted(named) if f"def {name}(" not in written] == []


def anchors(text: str) -> set[str]:
    """What can be linked to in a page, as GitHub makes it of the headings."""
    headings = re.findall(r"^#+ (.*)$", without_code(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", TEXTS)
def test_every_link_leads_to_a_file_and_a_heading(page: str) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", without_code(TEXTS[page])):
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent.joinpath(path).resolve() if path else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


def test_every_page_of_the_documentation_is_in_its_index() -> None:
    for index in ("docs/README.md", "docs/decisions/README.md"):
        pages = {page.name for page in (ROOT / index).parent.glob("*.md")} - {"README.md"}
        assert pages - set(re.findall(r"\]\(([\w-]+\.md)\)", TEXTS[index])) == set()


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/README.md", *DECISIONS])
def test_every_path_that_a_page_names_exists(page: str) -> None:
    """A path is from the root, or from the package."""
    words = [word for span in re.findall(r"`([^`]+)`", without_code(TEXTS[page])) for word in span.split()]
    paths = [word for word in words if re.fullmatch(r"\.?[\w-]+(/[\w.-]+)*(/|\.(py|c|h|md|sh|svg|toml))", word)]
    assert [path for path in paths if not any((root / path).exists() for root in (ROOT, ROOT / "gptcli"))] == []


def test_the_file_tree_names_every_folder_of_the_package() -> None:
    (tree,) = (block for block in blocks(README, "text") if "gptcli/" in block)
    named, above = set[str](), list[str]()
    for line in tree.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        above[depth:] = [name]
        named.add("".join(above))
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
    sources = [path for path in (ROOT / "gptcli").rglob("*") if path.suffix in (".py", ".c", ".h")]
    folders = {f"{path.parent.relative_to(ROOT).as_posix()}/" for path in sources}
    assert folders <= named, folders - named


def test_the_readme_stays_short() -> None:
    assert len(README.split()) <= 750


def test_the_lines_that_a_diff_adds_are_in_the_files_it_names() -> None:
    diffs = blocks(CONTRIBUTING, "diff")
    assert diffs
    for diff in diffs:
        for change in re.split(r"^--- ", diff, flags=re.MULTILINE)[1:]:
            file, *lines = change.splitlines()
            added = "\n".join(line[1:] for line in lines if line.startswith("+"))
            assert added in (ROOT / file).read_text(encoding="utf-8"), file


@pytest.mark.parametrize("page", sorted(set(DECISIONS) - {"docs/decisions/README.md"}))
def test_a_decision_is_four_short_lines(page: str) -> None:
    first, *entries = re.split(r"^## ", DECISIONS[page], flags=re.MULTILINE)
    assert first.startswith("# ")
    assert entries
    for entry in entries:
        title, body = entry.split("\n", 1)
        lines = [line.partition("** ") for line in body.strip().splitlines()]
        begin = [label for label, _, _ in lines]
        assert begin == [f"- **{each}" for each in ("Decision", "Why", "Rejected", "Revisit when")], title
        assert max(map(len, body.splitlines())) <= 120, title
        assert sum(len(text.split()) for _, _, text in lines) <= 60, title
