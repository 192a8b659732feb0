"""The documents: every block of code in them runs, and every table in them is what the code says."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

from nxm_hf import pruners, recipes
from nxm_hf.cli.main import main

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "examples/glue/README.md", "benchmarks/glue/README.md")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the number of its first line."""

    language: str
    text: str
    line: int


def blocks(document: str) -> list[Block]:
    text = (ROOT / document).read_text()
    return [Block(found[1], found[2], text[: found.start(2)].count("\n") + 1) for found in FENCE.finditer(text)]


def run_python(block: Block, document: str, names: dict) -> None:
    """Run it so that an error shows the document's own line."""
    exec(compile("\n" * (block.line - 1) + block.text, str(ROOT / document), "exec"), names)


def nxm_lines(block: Block) -> list[list[str]]:
    lines = [shlex.split(line, comments=True) for line in block.text.splitlines()]
    return [words[1:] for words in lines if words[:1] == ["nxm"]]


def after_the_change(block: Block) -> Block:
    """A diff as the file that it makes."""
    lines = [line[1:] for line in block.text.splitlines() if not line.startswith("-")]
    return Block("python", "\n".join(lines), block.line)


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_block_of_a_document_runs_in_its_order(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "document"}
    for block in blocks(document):
        if block.language == "python":
            run_python(block, document, names)
        for words in nxm_lines(block) if block.language == "shell" else ():
            if not words[-1].startswith("out/demo"):  # what the demo makes; `test_the_demo...` sees to that
                assert main(words) == 0, f"nxm {shlex.join(words)}"
    for block in blocks(document):
        if block.language == "diff":
            run_python(after_the_change(block), document, names)


def test_the_blocks_are_found_and_have_no_unknown_language():
    found = [block.language for document in DOCUMENTS for block in blocks(document)]
    assert (
        found.count("python") >= 9 and found.count("diff") == 1 and sum(map(bool, map(nxm_lines, blocks("README.md"))))
    )
    assert set(found) <= {"python", "shell", "diff", "text"}
    fences = sum((ROOT / document).read_text().count("```") for document in DOCUMENTS)
    assert fences == 2 * len(found)


def test_the_readme_shows_the_catalogue_of_recipes():
    def row(name: str) -> str:
        sentence, paper = recipes.describe(name)
        settings = ", ".join(f"`{key}={value!r}`" for key, value in recipes.settings(name).items()) or "none"
        source, link = paper.rsplit(", ", 1)
        return f"| `{name}` | {sentence} | {settings} | [{source}]({link}) |"

    shown = (ROOT / "README.md").read_text().split("<!-- recipes: begin -->\n")[1].split("<!-- recipes: end -->")[0]
    right = "\n".join(map(row, recipes.names())) + "\n"
    assert shown.split("|---|---|---|---|\n")[1] == right, f"The rows of README.md should be:\n{right}"


def test_the_readme_shows_the_methods_of_pruning_without_training():
    def row(name: str) -> str:
        sentence, paper = pruners.describe(name)
        source, link = paper.rsplit(", ", 1)
        return f"| `{name}` | {sentence} [{source}]({link}) |"

    shown = (ROOT / "README.md").read_text().split("<!-- methods: begin -->\n")[1].split("<!-- methods: end -->")[0]
    right = "\n".join(map(row, pruners.names())) + "\n"
    assert shown.split("|---|---|\n")[1] == right, f"The rows of README.md should be:\n{right}"


def test_ci_runs_the_readmes_own_two_commands():
    commands = [block.text.strip() for block in blocks("README.md") if block.language == "shell"][:2]
    install, demo = commands[0].split(" && ")
    lines = [line.strip() for line in (ROOT / ".ci/run").read_text().splitlines()]
    for command in (install, demo, commands[1]):
        assert command in lines
    assert lines.index(install) < lines.index(demo) < lines.index(commands[1])


def test_the_pages_that_a_document_points_to_are_there():
    links = [
        (document, link)
        for document in (*DOCUMENTS, "CHANGELOG.md")
        for link in re.findall(r"\]\(([^)#]+)\)", (ROOT / document).read_text())
        if "://" not in link
    ]
    assert len(links) >= 4
    for document, link in links:
        assert (ROOT / document).parent.joinpath(link).is_file(), f"{document} points to {link}"


def test_files_and_folders_that_contributing_names_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = re.findall(r"`((?:nxm_hf|tests)/[\w/]+(?:\.py)?)`", text)
    assert len(named) > 20
    for path in named:
        assert (ROOT / path).exists(), path
    table = text.split("| folder | what it does |")[1].split("\n\n")[0]
    folders = {
        name for cell in re.findall(r"^\| (`.+?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", cell)
    }
    assert folders == {path.parent.name for path in (ROOT / "nxm_hf").glob("*/__init__.py")}


def test_the_changelog_and_the_project_agree_on_the_version():
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert version in (ROOT / "CHANGELOG.md").read_text()
