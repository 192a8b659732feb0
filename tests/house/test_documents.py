"""The documents: every block of code in them runs, and every table in them is what the code says.

How a block is treated is visible on the page, in its language and its title:

- `python` and `shell` run in the order of the page, in an empty directory. Of a shell block, the lines of `nxm` run.
- `text title="Output"` is what the block before it prints. `...` stands for anything.
- A title such as "Needs trl" or "Needs a GPU" says why a block does not run. Its Python must compile.
- A title that is the name of a file, such as "sparsity.yaml": the file is written before later blocks run.

A page that links to the tiny model of the quicktour begins with its first block and its sparse model.
"""

import ast
import contextlib
import doctest
import importlib
import inspect
import io
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.main import get_command

import nxm_hf
from nxm_hf import pruners, recipes
from nxm_hf.cli import recipe_guide
from nxm_hf.cli.main import _app, main

ROOT = Path(__file__).parents[2]
QUICKTOUR = "docs/start/quicktour.md"
COMMANDS = get_command(_app())
RECIPES, METHODS = "docs/understand/recipes.md", "docs/howto/prune.md"
TINY_MODEL = "quicktour.md#a-tiny-model"
# Pages that need other models or packages than the quicktour's, with the tests that run their blocks.
RUN_ELSEWHERE = {
    "docs/howto/export.md": "tests/benchmarks/test_export.py",
    "docs/howto/lora.md": "tests/adapters/test_how_to.py",
    "docs/howto/sentence-transformers.md": "tests/trainer/test_sentence_transformers.py",
}
PAGES = tuple(sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")))
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "examples/README.md",
    "examples/glue/README.md",
    "benchmarks/glue/README.md",
    *PAGES,
)
LANGUAGES = {"python", "shell", "diff", "text", "yaml", "bibtex"}
FENCE = re.compile(r'^```(\w*)(?: title="([^"\n]*)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
OUTPUT = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its title, its text, and the number of its first line."""

    language: str
    title: str
    text: str
    line: int

    @property
    def needs(self) -> bool:
        """Return True if the title says that the block needs something that tests do not have."""
        return self.title.startswith("Needs ")

    @property
    def is_file(self) -> bool:
        return self.language in ("yaml", "text") and re.fullmatch(r"[\w-]+\.\w+", self.title) is not None


def blocks(document: str) -> list[Block]:
    text = (ROOT / document).read_text()
    return [
        Block(found[1], found[2] or "", found[3], text[: found.start(3)].count("\n") + 1)
        for found in FENCE.finditer(text)
    ]


def run_python(block: Block, document: str, names: dict) -> None:
    """Run it so that an error shows the document's own line."""
    exec(compile("\n" * (block.line - 1) + block.text, str(ROOT / document), "exec"), names)


def nxm_lines(block: Block) -> list[list[str]]:
    """Return the words after `nxm` in each line of a shell block that begins so."""
    lines = block.text.replace("\\\n", " ").splitlines() if block.language == "shell" else []
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("nxm ")]


def after_the_change(block: Block) -> Block:
    """A diff as the file that it makes."""
    lines = [line[1:] for line in block.text.splitlines() if not line.startswith("-")]
    return Block("python", block.title, "\n".join(lines), block.line)


def run_block(block: Block, document: str, names: dict) -> None:
    if block.needs:
        return
    if block.is_file:
        Path(block.title).write_text(block.text)
    elif block.language == "python":
        run_python(block, document, names)
    for words in nxm_lines(block):
        if not words[-1].startswith("out/demo"):  # what the demo makes; `test_the_demo...` sees to that
            assert main(words) == 0, f"{document}: nxm {shlex.join(words)}"


def run_document(document: str, names: dict) -> None:
    """Run every block in the present directory, those of diffs last."""
    printed = ""
    for block in blocks(document):
        if block.title == "Output":
            right = doctest.OutputChecker().check_output(block.text, printed, OUTPUT)
            assert right, f"{document}:{block.line} should be what is printed:\n{printed}"
        else:
            with contextlib.redirect_stdout(io.StringIO()) as out:
                run_block(block, document, names)
            printed = out.getvalue()
    for block in blocks(document):
        if block.language == "diff":
            run_python(after_the_change(block), document, names)


@pytest.fixture(scope="module")
def quicktour(tmp_path_factory):
    """The directory in which the quicktour has run."""
    folder = tmp_path_factory.mktemp("quicktour")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_document(QUICKTOUR, {"__name__": "document"})
    return folder


def is_run(document: str) -> bool:
    runs = any(
        block.language in ("python", "diff") or nxm_lines(block) for block in blocks(document) if not block.needs
    )
    return runs and document != QUICKTOUR and document not in RUN_ELSEWHERE


@pytest.mark.slow
@pytest.mark.parametrize("document", [document for document in DOCUMENTS if is_run(document)])
def test_every_block_of_a_document_runs_in_its_order(document, quicktour, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "document"}
    if TINY_MODEL in (ROOT / document).read_text():
        shutil.copytree(quicktour / "bert-2of4", tmp_path / "bert-2of4")
        run_python(blocks(QUICKTOUR)[0], QUICKTOUR, names)
    run_document(document, names)


def test_pages_that_other_tests_run_are_named_there():
    for document, test in RUN_ELSEWHERE.items():
        assert document in (ROOT / test).read_text() and any(block.language == "python" for block in blocks(document))


def test_blocks_that_need_something_are_right_as_far_as_can_be_told():
    needing = [(document, block) for document in DOCUMENTS for block in blocks(document) if block.needs]
    assert needing
    for document, block in needing:
        if block.language == "python":
            compile("\n" * (block.line - 1) + block.text, document, "exec")
        for name, *words in nxm_lines(block):
            options = {option for parameter in COMMANDS.commands[name].params for option in parameter.opts}
            assert {word for word in words if word.startswith("--")} <= options, f"{document}: nxm {name}"


def test_the_blocks_are_found_and_have_no_unknown_language():
    found = [block for document in DOCUMENTS for block in blocks(document)]
    languages = [block.language for block in found]
    assert languages.count("python") >= 40 and languages.count("diff") == 1 and set(languages) <= LANGUAGES
    assert sum(map(bool, map(nxm_lines, found))) >= 10
    assert sum(block.title == "Output" for block in found) >= 5
    fences = sum((ROOT / document).read_text().count("```") for document in DOCUMENTS)
    assert fences == 2 * len(found)
    titled = [block for block in found if block.title]
    assert not [block for block in titled if not (block.needs or block.is_file or block.title == "Output")]


def test_the_page_of_recipes_shows_the_catalogue():
    def row(name: str) -> str:
        sentence, paper = recipes.describe(name)
        settings = ", ".join(f"`{key}={value!r}`" for key, value in recipes.settings(name).items()) or "none"
        source, link = paper.rsplit(", ", 1)
        return f"| `{name}` | {sentence} | {settings} | [{source}]({link}) |"

    shown = (ROOT / RECIPES).read_text().split("<!-- recipes: begin -->\n")[1].split("<!-- recipes: end -->")[0]
    right = "\n".join(map(row, recipes.names())) + "\n"
    assert shown.split("|---|---|---|---|\n")[1] == right, f"The rows of {RECIPES} should be:\n{right}"


def test_the_page_of_pruning_shows_the_methods_of_pruning_without_training():
    def row(name: str) -> str:
        sentence, paper = pruners.describe(name)
        source, link = paper.rsplit(", ", 1)
        return f"| `{name}` | {sentence} [{source}]({link}) |"

    shown = (ROOT / METHODS).read_text().split("<!-- methods: begin -->\n")[1].split("<!-- methods: end -->")[0]
    right = "\n".join(map(row, pruners.names())) + "\n"
    assert shown.split("|---|---|\n")[1] == right, f"The rows of {METHODS} should be:\n{right}"


def test_ci_runs_the_readmes_own_two_commands():
    commands = [block.text.strip() for block in blocks("README.md") if block.language == "shell"][:2]
    install, demo = commands[0].split(" && ")
    lines = [line.strip() for line in (ROOT / ".ci/run").read_text().splitlines()]
    for command in (install, demo, commands[1]):
        assert command in lines
    assert lines.index(install) < lines.index(demo) < lines.index(commands[1])


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


def test_the_page_of_results_shows_what_nxm_recipes_goes_by():
    shown = (ROOT / "docs/research/results.md").read_text().split("<!-- results: begin -->\n")[1]
    rows = [
        f"| {one.pattern} | `{one.recipe}` | {', '.join(one.tasks)} | {one.seeds} | {one.gap_closed:.0%} |"
        for one in recipe_guide.MEASUREMENTS
    ]
    right = "\n".join(rows) + "\n"
    assert shown.split("<!-- results: end -->")[0].split("|---|---|---|---|---|\n")[1] == right, right


def test_every_page_is_in_the_navigation_of_the_site_once():
    pages = re.findall(r"[\w/-]+\.md$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(f"docs/{page}" for page in pages) == list(PAGES)


def test_the_page_of_the_command_line_has_every_command():
    rows = re.findall(r"^\| `nxm (\w+)` \| (.+) \|$", (ROOT / "docs/reference/cli.md").read_text(), re.MULTILINE)
    assert dict(rows) == {name: command.help.partition("\n")[0] for name, command in COMMANDS.commands.items()}


def test_the_reference_has_every_public_name():
    """The pages name a thing by the module that defines it."""
    pages = "".join(path.read_text() for path in (ROOT / "docs/reference").glob("*.md"))
    named = re.findall(r"^::: (nxm_hf[\w.]+)$", pages, re.MULTILINE)
    for name in named:
        module, _, thing = name.rpartition(".")
        assert hasattr(importlib.import_module(module), thing), name
    missing = {
        name for name in nxm_hf.__all__ if name != "__version__" and name not in {n.split(".")[-1] for n in named}
    }
    assert not [name for name in missing if not inspect.ismodule(getattr(nxm_hf, name))]
    assert {name for name in recipes.names()} <= {name.split(".")[-1].replace("_", "-") for name in named}


def texts_of_the_library() -> list[str]:
    """Every string in the code, with * for what is filled in."""
    found = []
    for path in Path(nxm_hf.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            texts = [part.value if isinstance(part, ast.Constant) else "*" for part in parts]
            if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str)):
                found.append("".join(map(str, texts)))
    return found


def test_the_error_messages_of_troubleshooting_are_those_of_the_library():
    page = (ROOT / "docs/troubleshooting.md").read_text()
    table = page.split("## Error messages")[1].split("\n## ")[0].splitlines()
    cells = [line.split(" | ")[0] for line in table if line.startswith("| `") and ", by " not in line.split(" | ")[0]]
    messages = [message for cell in cells for message in re.findall(r"`([^`]+)`", cell)]
    texts = texts_of_the_library()
    assert len(messages) > 15
    assert not [message for message in messages if not any(message in text for text in texts)]
