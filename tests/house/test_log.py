"""The log: dated posts, each with a line in its index."""

import re
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "docs/research/log"
POSTS = sorted(path.name for path in FOLDER.glob("*.md") if path.name != "index.md")
LINE = re.compile(r"^\| (\d{4}-\d\d-\d\d) \| \[(.+)\]\(([\w-]+\.md)\) \| (.+) \| (\w+) \|$")


def index() -> list[re.Match[str]]:
    """Return the lines of the table of the index."""
    table = (FOLDER / "index.md").read_text().split("<!-- posts: begin -->\n")[1].split("<!-- posts: end -->")[0]
    lines = table.splitlines()[2:]
    found = [LINE.match(line) for line in lines]
    assert all(found), [line for line, match in zip(lines, found, strict=True) if not match]
    return [match for match in found if match]


def test_every_post_has_a_date_in_its_name_and_in_its_first_line():
    assert len(POSTS) > 30
    for name in POSTS:
        date = re.match(r"(\d{4}-\d\d-\d\d)-[a-z0-9-]+\.md$", name)
        title, blank, first = (FOLDER / name).read_text().splitlines()[:3]
        assert date and title.startswith("# ") and not blank and first.startswith(f"*{date[1]}.*"), name


def test_the_index_has_one_line_for_each_post_with_its_date_and_outcome_newest_first():
    lines = index()
    assert sorted(line[3] for line in lines) == POSTS
    assert all(line[3].startswith(line[1]) and line[5] in ("positive", "negative", "mixed") for line in lines)
    dates = [line[1] for line in lines]
    assert dates == sorted(dates, reverse=True)


def test_the_site_lists_posts_as_the_index_does():
    nav = re.findall(r"research/log/(2[\w-]+\.md)$", (FOLDER.parents[2] / "mkdocs.yml").read_text(), re.MULTILINE)
    assert nav == [line[3] for line in index()]


def test_there_is_no_other_log():
    assert not (FOLDER.parents[1] / "log.md").exists(), "CONTRIBUTING.md says where a new measurement goes"
