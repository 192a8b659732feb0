"""The page of training runs: it is valid, self-contained and shows the logged numbers."""

import html
import json
import re

import pytest

from nxm_hf.analysis.recording import ANALYSIS_FILE
from nxm_hf.report import read_runs
from nxm_hf.report.training_page import training_page
from tests.support.html_reader import Reader
from tests.support.report_runs import make_run_trainer, read_log

SECTIONS = ["summary", "curves", "layers", "density", "weights", "flops", "settings", "environment", "verification"]


@pytest.mark.parametrize("chosen", [["admm"], ["sr-ste"], ["rigl"], ["admm", "sr-ste", "rigl"]], ids="+".join)
def test_a_page_is_whole_has_every_section_and_names_each_picture(chosen, made):
    text = training_page(read_runs([made[name] for name in chosen]))
    reader = Reader(text)
    assert [a["id"] for tag, a in reader.found if tag == "section"] == SECTIONS
    assert 'class="none"' not in text, "every section has something to show"
    drawn = [a for tag, a in reader.found if tag == "svg" and "aria-hidden" not in a]
    assert len(drawn) > 20 and all(a["role"] == "img" and a["aria-label"] for a in drawn)
    assert text.count("</title>") == len(drawn) + 1
    assert "NaN" not in text and "nan" not in re.findall(r"[\w.]+", text)


def test_a_page_refers_to_nothing_outside_but_papers(made):
    text = training_page(read_runs(list(made.values())))
    for tag, attributes in Reader(text).found:
        assert tag not in ("script", "link", "iframe", "img", "image", "use", "object"), tag
        assert not attributes.keys() & {"src", "srcset", "xlink:href", "onload", "data"}
        assert tag == "a" or not any("//" in (value or "") for value in attributes.values())
    links = re.findall(r"https?://[^\"<\s]+", text)
    assert len(links) == text.count("<a href=") == 3 and all("arxiv.org" in link for link in links)
    assert not re.search(r"@import|url\(|expression\(", text)


@pytest.mark.parametrize(
    ("title", "key"),
    [
        ("Training loss", "loss"),
        ("Evaluation: loss", "eval_loss"),
        ("Residual", "nxm/residual"),
        ("Flip rate", "nxm/flip_rate"),
        ("Mask similarity", "nxm/mask_similarity"),
    ],
)
def test_the_numbers_of_a_figure_are_those_of_the_logs(title, key, made):
    chosen = [made["admm"], made["sr-ste"]]
    head, *rows = Reader(training_page(read_runs(chosen))).tables[title]
    assert head == ["step", "admm", "sr-ste"]
    for column, folder in enumerate(chosen, start=1):
        expected = [(record["step"], record[key]) for record in read_log(folder) if key in record]
        assert [(int(row[0]), float(row[column])) for row in rows] == expected


def test_a_run_without_samples_is_drawn_and_says_how_to_get_them(runs):
    (runs["admm"] / ANALYSIS_FILE).unlink()
    text = training_page(read_runs([runs["admm"]]))
    assert [a["id"] for tag, a in Reader(text).found if tag == "section"] == SECTIONS
    assert "Add AnalysisCallback()" in text


def test_a_dense_run_is_drawn_beside_a_sparse_one(runs, tmp_path):
    make_run_trainer(tmp_path / "plain", "dense", callbacks=()).train()
    found = read_runs([tmp_path / "plain", runs["admm"]])
    assert Reader(training_page(found)).tables["Summary"][2] == ["recipe", "dense", "admm"]


def test_a_log_without_evaluation_or_finite_loss_still_makes_a_page(runs):
    for path in runs["admm"].glob("checkpoint-*/trainer_state.json"):
        words = json.loads(path.read_text())
        log = [{**r, "loss": float("nan")} for r in words["log_history"] if "loss" in r]
        path.write_text(json.dumps({**words, "log_history": log}))
    text = training_page(read_runs([runs["admm"]]))
    assert "No loss was logged" in text and "No evaluation was logged" in text
    Reader(text)


def test_names_of_directories_and_layers_are_text_and_no_markup(runs, tmp_path):
    folder = runs["admm"].rename(tmp_path / "<b>&run")
    path = folder / ANALYSIS_FILE
    path.write_text(path.read_text().replace("bert.encoder.layer.0.attention.self.query", "<script>alert(1)//"))
    for others in ([], [runs["sr-ste"]]):
        text = training_page(read_runs([folder, *others]))
        Reader(text)
        assert "<script" not in text and html.escape("<script>alert(1)//") in text
        assert "<b>&run" not in text and "&lt;b&gt;&amp;run" in text


def test_a_model_that_breaks_its_pattern_is_shown_as_such(runs):
    from safetensors.torch import load_file, save_file

    path = runs["admm"] / "model.safetensors"
    weights = load_file(path)
    weights["bert.encoder.layer.0.attention.self.query.weight"].fill_(1.0)
    save_file(weights, path, metadata={"format": "pt"})
    text = training_page(read_runs([runs["admm"]]))
    assert "breaks 2:4 in" in text and 'class="bad"' in text


def test_an_unfinished_run_says_so_and_has_no_final_model(runs):
    for path in [runs["admm"] / "model.safetensors", runs["admm"] / "nxm_config.json"]:
        path.unlink()
    for path in runs["admm"].glob("checkpoint-*/trainer_state.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "max_steps": 48}))
    reader = Reader(text := training_page(read_runs([runs["admm"]])))
    table = {row[0]: row[1] for row in reader.tables["Summary"][1:]}
    assert table["state"] == "unfinished, 12 of 48 steps" and table["newest saved model"] == "checkpoint-12"
    assert "final model" not in text and "checkpoint-12 (the training is unfinished, 12 of 48 steps)" in text


def test_no_table_is_cut_and_what_two_runs_share_is_in_one_table(made):
    reader = Reader(text := training_page(read_runs([made["admm"], made["sr-ste"]])))
    assert "max-height" not in text
    for title in ("Layers", "Verification of the final models"):
        head, *rows = reader.tables[title]
        assert len(rows) == 12 and sum(cell.startswith("admm: ") for cell in head) == (len(head) - 3) / 2
        assert all(len(row) == len(head) for row in rows)


def test_what_is_constant_is_named_and_not_drawn(made):
    text = training_page(read_runs([made["admm"]]))
    assert "Not drawn, because constant: Density in training (admm: 0.5)" in text
    assert "<figcaption>Density in training" not in text
