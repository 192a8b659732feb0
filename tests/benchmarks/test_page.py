"""The page: every number on it is worked out again from the records."""

import re

import numpy as np
import pytest
import transformers

from benchmarks.glue.comparison.page import PAGE, render
from benchmarks.glue.comparison.trials import Trial
from tests.support.comparison_trials import (
    POINT,
    fake_record,
    table_rows,
    write_comparison,
    write_trials,
)


def test_the_page_shows_the_scores_of_the_records(page):
    records, text, folder = page
    assert (folder / PAGE).read_text() == text + "\n"
    shown = table_rows(text, "mrpc", 0)
    for recipe in ("dense", "asp", "admm rho=0.01", "admm rho=0.01 teacher=dense"):
        mine = [record for record in records if (record["task"], record["recipe"]) == ("mrpc", recipe)]
        for column, name in ((1, "eval_f1"), (2, "eval_accuracy")):
            values = [record["metrics"][name] for record in mine]
            assert shown[recipe][column] == f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}"
        recalls = [record["recall"]["equivalent"] for record in mine]
        assert shown[recipe][0] == "3" and shown[recipe][4] == f"{np.mean(recalls):.3f}"
    low, high, ours = (float(shown[recipe][1].split()[0]) for recipe in ("asp", "dense", "admm rho=0.01"))
    assert float(shown["admm rho=0.01"][6].strip("%")) == pytest.approx(100 * (ours - low) / (high - low), abs=0.1)
    assert shown["dense"][5] == "1.000" and shown["asp"][6] == "0.0%" and shown["dense"][6] == "100.0%"
    assert shown["*the same answer always*"][1] != "-" and list(table_rows(text, "stsb", 0)["asp"])[1].startswith("0.")


def test_the_page_shows_what_differs_and_what_it_cost(page):
    _, text, _ = page
    differences, costs = table_rows(text, "mrpc", 1), table_rows(text, "mrpc", 2)
    assert differences["asp"][0] == "-" and re.fullmatch(r"-0\.\d+ \[-0\.\d+, -0\.\d+\]", differences["asp"][1])
    assert re.fullmatch(r"\+0\.\d+ \[[+-]0\.\d+, \+0\.\d+\]", differences["admm rho=0.01"][0])
    assert costs["dense"][0] == "1.000" and float(costs["asp"][0]) < 1
    taught = float(costs["admm rho=0.01"][0]) + 4 / 3  # the teacher's training, and the forward third of each step
    assert float(costs["admm rho=0.01 teacher=dense"][0]) == pytest.approx(taught, abs=0.002)
    assert costs["admm rho=0.01 teacher=dense"][3] == "15" and costs["asp"][3] == "10"
    assert costs["asp"][2] == "0.195" and costs["dense"][1:3] == ["-", "-"]


def test_all_tasks_are_put_together_as_the_paper_does(page):
    records, text, _ = page
    shown = {
        line.split("`")[1]: line.split("|")[2:-1]
        for line in text.split("### mrpc")[0].splitlines()
        if "`" in line and "|" in line
    }

    def scores(recipe: str, task: str, name: str) -> list[float]:
        return [r["metrics"][name] for r in records if (r["task"], r["recipe"]) == (task, recipe)]

    for recipe, row in shown.items():
        main = [np.mean(scores(recipe, "mrpc", "eval_f1")), np.mean(scores(recipe, "stsb", "eval_pearson"))]
        theirs = [main[0], np.mean(scores(recipe, "stsb", "eval_spearmanr"))]
        assert row[0].strip() == f"{np.mean(main):.4f}" and row[4].strip() == f"{100 * np.sqrt(np.prod(theirs)):.2f}"
    assert "2 of the 8 numbers" in text


def test_with_one_seed_there_is_no_spread_and_the_page_says_so(model, tmp_path, without_plots):
    write_comparison(tmp_path, model, seeds=(3,))
    text = render(tmp_path)
    assert "±" not in text.replace("there is no ±", "") and "With one seed there is no ±" in text
    assert re.fullmatch(r"0\.\d{4}", table_rows(text, "mrpc", 0)["asp"][1])


def test_a_page_of_records_alone_says_that_the_rows_are_gone(model, tmp_path, without_plots):
    write_comparison(tmp_path, model, with_rows=False)
    text = render(tmp_path)
    assert "The prediction files of mrpc, stsb are missing" in text
    assert re.fullmatch(r"\+0\.\d+ \[[+-]0\.\d+, [+-]0\.\d+\]", table_rows(text, "mrpc", 1)["admm rho=0.01"][0])


def test_a_model_out_of_reach_is_looked_for_once_and_the_page_says_what_it_lacks(tmp_path, monkeypatch):
    """Without a network each look takes half a minute, and a page has a column of FLOPs for every arm and task."""
    read, looks = transformers.AutoConfig.from_pretrained, []

    def counted(model, *args, **words):
        looks.append(model)
        return read(model, *args, **words)

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", counted)
    write_comparison(tmp_path, "./a-model-out-of-reach", seeds=(0,))
    text = render(tmp_path)
    assert looks == ["./a-model-out-of-reach"]
    assert "The config of ./a-model-out-of-reach cannot be read here, so FLOPs and numbers of masks" in text
    assert table_rows(text, "mrpc", 2)["asp"][0] == "-" and not (tmp_path / "flops.png").exists()


def test_f_is_the_way_from_the_small_model_to_the_dense_one(model, tmp_path, without_plots):
    more = ("--from_scratch",)
    rights = {"small": 0.5, "dense": 0.9, "asp": 0.6, "admm": 0.8}
    records = {
        recipe: fake_record(Trial("rte", recipe, 0, POINT, model=model, more=more), right)
        for recipe, right in rights.items()
    }
    write_trials(tmp_path, [*records.values()])
    text = render(tmp_path)
    shown, costs = table_rows(text, "rte", 0), table_rows(text, "rte", 2)
    low, high, ours = (records[name]["metrics"]["eval_accuracy"] for name in ("small", "dense", "admm"))
    assert shown["admm"][-1] == f"{(ours - low) / (high - low):.3f}"
    assert shown["small"][-1] == "0.000" and shown["dense"][-1] == "1.000"
    assert 0.2 < float(costs["small"][0]) < 0.9
