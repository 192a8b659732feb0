"""The numbers of the documents: each measured one stands in a table of this repository that its page links to."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOME = "https://github.com/nxm-hf/nxm-hf/blob/main/"
PAGES = [
    "README.md",
    "docs/index.md",
    *(f"docs/choose/{name}.md" for name in ("cost", "layers", "pattern", "recipe")),
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs/understand/papers").glob("*.md")),
]
MEASURED = re.compile(
    r"(?<![\d.])0?(\.\d{3,4})(?![\d.])"
)  # accuracies and correlations, which have three digits or four
LINK = re.compile(r"\]\(([^)\s#]+\.md)")
CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
UNPACKED = ROOT / "benchmarks/glue/results"  # which a source distribution leaves out

pytestmark = pytest.mark.skipif(not UNPACKED.exists(), reason="needs benchmarks/glue/results")


def numbers(text: str) -> set[str]:
    return set(MEASURED.findall(CODE.sub("", text)))


def sources(page: str) -> str:
    """Return the text of the pages that a page links to, but for the pages that are checked here themselves."""
    found = LINK.findall((ROOT / page).read_text())
    paths = {
        (ROOT / link.removeprefix(HOME) if link.startswith(HOME) else (ROOT / page).parent / link).resolve()
        for link in found
    }
    names = {str(path.relative_to(ROOT)): path for path in paths if path.is_relative_to(ROOT)}
    return "".join(path.read_text() for name, path in names.items() if name not in PAGES or "choose" in name)


def missing(shown: set[str], text: str) -> set[str]:
    """Return the numbers that do not stand in a text, nor are one of its numbers rounded to three digits."""
    known = numbers(text)
    rounded = {f"{float(number):.3f}"[1:] for number in known}
    return shown - known - rounded


@pytest.mark.parametrize("page", PAGES)
def test_every_measured_number_stands_on_a_page_that_is_linked(page):
    assert not missing(numbers((ROOT / page).read_text()), sources(page))


def test_numbers_are_found_and_wrong_ones_are_missed():
    assert sum(len(numbers((ROOT / page).read_text())) for page in PAGES) > 60
    assert numbers("| .8672 | 0.8210 | -0.0063 [1.32, 84.9] 0.12.3 | 2026 |\n```text\n.1234\n```") == {
        ".8672",
        ".8210",
        ".0063",
    }
    assert missing({".867", ".8672", ".8673"}, "| .8672 |") == {".8673"}
