"""Every link of every Markdown file leads somewhere: to a file, and to a heading in it. Without a network."""

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOME = "https://github.com/nxm-hf/nxm-hf/"
HERE = re.compile(rf"{HOME}(?:blob|tree|raw)/main/(.*)")  # an address of a file in this repository
UNPACKED = ROOT / "benchmarks/glue/results"  # which a source distribution leaves out
HIDDEN = {".git", ".venv", "venv", "node_modules", "site", "dist", "build", "out", "results"}
FILES = sorted(
    path for path in ROOT.rglob("*.md") if not HIDDEN & {*path.relative_to(ROOT).parts} and ".pytest" not in str(path)
)
CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)")
HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)


def slug(heading: str) -> str:
    """Return the anchor that GitHub and the site give a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.replace("`", "").replace("*", "")).lower()
    return re.sub(r"[^\w\- ]", "", text).strip().replace(" ", "-")


@cache
def anchors(path: Path) -> frozenset[str]:
    """Return the anchors of a file: of its headings, a number after each that is there already, and those it sets."""
    text = path.read_text(encoding="utf-8")
    found: list[str] = []
    for heading in HEADING.findall(re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)):
        anchor = slug(heading)
        taken = sum(other == anchor or re.fullmatch(re.escape(anchor) + r"-\d+", other) is not None for other in found)
        found.append(f"{anchor}-{taken}" if taken else anchor)
    return frozenset([*found, *re.findall(r'<a (?:id|name)="([^"]+)"', text)])


def links(path: Path) -> list[str]:
    return LINK.findall(CODE.sub(lambda code: "`code`", path.read_text(encoding="utf-8")))


def problem(path: Path, link: str) -> str | None:
    """Return what is wrong with a link of a file; None for one that is right, or leads out of this repository."""
    address, _, anchor = link.partition("#")
    if inside := HERE.fullmatch(address):
        target = ROOT / inside[1]
    elif re.match(r"[a-z]+:", address):
        return None
    else:
        target = path.parent / address if address else path
    target = target.resolve()
    if not target.is_relative_to(ROOT):
        return "leads out of the repository"
    if target.is_relative_to(UNPACKED) and not UNPACKED.exists():
        return None
    if not target.exists():
        return "leads to no file"
    if anchor and target.suffix == ".md" and anchor not in anchors(target):
        return f"leads to no heading; there are {', '.join(sorted(anchors(target)))}"
    return None


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(path):
    wrong = {link: text for link in links(path) if (text := problem(path, link))}
    assert not wrong, "\n".join(f"{link} {text}" for link, text in wrong.items())


def test_links_to_nothing_are_found(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    page, other = tmp_path / "page.md", tmp_path / "docs" / "other.md"
    other.parent.mkdir()
    other.write_text("# What `nxm_hf` is\n\n## Twice\n\n## Twice\n\n```shell\n# no heading\n```\n")
    right = ["docs/other.md", "docs/other.md#what-nxm_hf-is", "docs/other.md#twice-1", f"{HOME}blob/main/page.md"]
    wrong = ["other.md", "../x.md", "docs/other.md#no-heading", "docs/other.md#twice-2", f"{HOME}blob/main/other.md"]
    page.write_text("".join(f"[text]({link}) " for link in [*right, *wrong, "https://example.org"]) + "`[a](b.md)`")
    assert [link for link in links(page) if problem(page, link)] == wrong


def test_the_readme_links_by_whole_addresses():
    """A package index shows it too, where a relative link leads nowhere."""
    found = links(ROOT / "README.md")
    assert len(found) >= 10 and not [link for link in found if not link.startswith("https://")]
