"""Names from strangers: whatever they hold, pages, cards, plots and terminals show them and do nothing else."""

import dataclasses
import html
import json
import re

import pytest

from benchmarks.glue.comparison.page import render
from benchmarks.glue.comparison.tables import table as markdown_table
from nxm_hf import NxMConfig, prune
from nxm_hf.cli.main import main as nxm
from nxm_hf.config import SparsityRecord
from nxm_hf.inference.bench import Bench, Measurement
from nxm_hf.inference.timing import Timing
from nxm_hf.pruning.result import PrunedLayer, PruningResult
from nxm_hf.report import training_page, write_report
from nxm_hf.report.bench_page import bench_charts, bench_page
from nxm_hf.report.charts import charts
from nxm_hf.report.png import write_pngs
from nxm_hf.report.run import read_run
from nxm_hf.storage.model_card import write_card
from nxm_hf.storage.verify import Verification, verify
from nxm_hf.text import markdown_code, markdown_text, printable
from tests.support.comparison_trials import write_comparison
from tests.support.html_reader import Reader
from tests.support.models import make_bert
from tests.support.report_runs import train_run
from tests.support.saved_models import QUERY, edit_config

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "a|b|c",
    "`code` ``more``",
    "a\n\n# heading\n- [ ] item",
    "[link](javascript:alert(1))",
    "![image](//evil.example/x.png)",
    "<!-- nxm_hf: end -->",
    "$\\frac{a$ _x_ **b** ~c~",
    "' autofocus onfocus='alert(1)",
    "\x1b[2J\x1b]0;owned\x07\u202e",
    "]]> &lt;b&gt; --> {{x}} \\",
]
TAGS = {
    "html",
    "head",
    "meta",
    "title",
    "style",
    "body",
    "header",
    "main",
    "section",
    "div",
    "h1",
    "h2",
    "h3",
    "p",
    "b",
}
TAGS |= {"ul", "li", "a", "table", "thead", "tbody", "tr", "th", "td", "span", "wbr", "figure", "figcaption", "details"}
TAGS |= {"summary", "svg", "path", "polyline", "circle", "rect", "text"}


def assert_harmless_page(text: str, name: str) -> None:
    """Raise if a page has a tag, an attribute or a link that ours have not, or does not show the name."""
    page = Reader(text)
    for tag, attributes in page.found:
        assert tag in TAGS, tag
        assert not [key for key in attributes if key.startswith("on") or key in ("src", "autofocus")], attributes
        assert str(attributes.get("href", "https://")).startswith("https://")
    assert name.split()[0] in html.unescape(text.replace("<wbr>", ""))


def assert_harmless_markdown(text: str, name: str) -> None:
    """Raise if a name has become a tag, a link, a cell, a heading or a control character, or is not shown."""
    own = "<details><summary>Each layer</summary>", "</details>"  # of a card, each on a line of its own
    rest = "\n".join(line for line in text.splitlines() if line not in own)
    assert not re.search(r"<(?!code>|/code>|!-- nxm_hf: (begin|end) -->)", rest), text
    assert not re.search(r"\]\((?!https://github\.com)", text) and "![" not in text
    assert all(c == "\n" or c.isprintable() for c in text)
    assert printable(" ".join(name.split())) in html.unescape(text)
    for block in re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1, block
    for line in text.splitlines():
        assert line.count("`") % 2 == 0 or line.startswith("```"), line


@pytest.mark.parametrize("name", HOSTILE)
def test_text_and_code_in_markdown_are_one_harmless_line(name):
    for written in (markdown_text(name), markdown_code(name), markdown_code(f"`{name}"), markdown_code("")):
        assert "\n" not in written and not re.search(r"<(?!/?code>)", written)
    assert_harmless_markdown(markdown_text(name), name)
    assert_harmless_markdown(markdown_code(name), name)
    assert_harmless_markdown(markdown_table(["a", "b"], [[markdown_code(name), markdown_text(name)], ["1", "2"]]), name)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_model_card_shows_hostile_names_and_its_section_can_be_replaced(name, tmp_path):
    prune(model := make_bert(), "2:4")
    found = verify(model)
    layers = tuple(dataclasses.replace(layer, name=name) for layer in found.layers)
    pruning = {"method": name, "settings": {name: name}}
    record = SparsityRecord(NxMConfig("asp"), {name: "2:4"}, 0.5, pruning, nxm_version=name)
    folder = tmp_path / name.replace("/", "-").replace("\x1b", "")
    folder.mkdir()
    for _ in range(2):
        write_card(folder, record, Verification(layers))
    card = (folder / "README.md").read_text()
    assert card.count("## Sparsity") == 1 and card.count("<!-- nxm_hf:") == 2
    assert_harmless_markdown(card.partition("---\n\n")[2], name)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": name, "peft_type": "LORA"}))
    write_card(folder, record, Verification(layers))
    card = (folder / "README.md").read_text()
    assert "base model" in card
    assert_harmless_markdown(card.partition("---\n\n")[2], name)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The output directory of a training with an analysis."""
    return train_run(tmp_path_factory.mktemp("run") / "out")


@pytest.mark.parametrize("name", [*HOSTILE[:2], " ".join(HOSTILE)])
def test_a_report_of_a_training_shows_hostile_names(name, trained, tmp_path):
    run = read_run(trained, name)
    text = json.dumps({"analysis": run.analysis, "state": run.state, "config": run.config})
    text = text.replace(QUERY, json.dumps(name)[1:-1]).replace("eval_loss", "eval_" + json.dumps(name)[1:-1])
    parts = json.loads(text)
    assert name in parts["analysis"]["layers"] and parts["analysis"]["excerpt"]["layer"]
    parts["analysis"]["environment"] |= {name: name}
    parts["config"] |= {"recipe": name, "pattern": name, "settings": {name: name}}
    verified = Verification(tuple(dataclasses.replace(layer, name=name, role=name) for layer in run.verified.layers))
    hostile = dataclasses.replace(run, **parts, verified=verified)
    other = dataclasses.replace(hostile, name=f"2{name}", verified=f"Not verified: {name}")
    assert_harmless_page(training_page([hostile, other]), name)
    pictures = write_pngs(charts([hostile, other])[:2], tmp_path)
    assert all(path.parent == tmp_path / "report" and path.stat().st_size for path in pictures)


@pytest.mark.parametrize("name", HOSTILE)
def test_reports_of_pruned_models_and_benches_show_hostile_names(name, tmp_path):
    layer = PrunedLayer(name, name, (8, 8), name, 0.5, 0.5, 0.1, 0.2, 5, note=name)
    PruningResult(name, {name: name}, (layer,), {name: name}, scores={name: (0.1, 0.2)}).save(tmp_path)
    (page,) = [path for path in write_report([tmp_path]) if path.suffix == ".html"]
    assert_harmless_page(page.read_text(), name)
    timings = {way: Timing((1.0, 1.0, 1.0)) for way in ("dense", name)}
    measured = Measurement(name, 1, 16, timings, {name: 0.0})
    bench = Bench(name, name, name, 1, (measured,), (measured,), 2, 1, (name,))
    assert_harmless_page(bench_page(bench), name)
    assert all(path.stat().st_size for path in write_pngs(bench_charts(bench)[:1], tmp_path))


def test_the_page_of_a_comparison_shows_a_hostile_model(tmp_path):
    name = " ".join(HOSTILE)
    write_comparison(tmp_path, name, seeds=(0,), with_rows=False)
    assert_harmless_markdown(render(tmp_path).partition("### Plots")[0], name)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_terminal_is_not_told_what_to_do(name, tmp_path, capsys):
    prune(model := make_bert(), "2:4")
    model.save_pretrained(tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())["nxm_config"]
    edit_config(tmp_path, nxm_config={**record, "layers": {**record["layers"], name: "2:4"}})
    assert nxm(["verify", str(tmp_path)]) == (1 if name.isprintable() else 2)
    edit_config(tmp_path, nxm_config=record, architectures=[name])
    assert nxm(["verify", str(tmp_path)]) == nxm(["inspect", str(tmp_path)]) == 2
    printed = "".join(capsys.readouterr())
    assert all(c == "\n" or c.isprintable() for c in printed)
