"""The comparison of recipes: its names and words, its statistics, its page, and what a kill leaves of it."""

import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import compare
import glue_metric
import numpy as np
import pytest
import run_glue
import torch
import transformers
from comparing import arms, measures
from comparing.cells import Cell, check_cell, check_more, read_recipe
from comparing.comparison import PAGE, render
from comparing.results import Plan, Results, summary
from comparing.search import Search, read_space
from comparing.shapes import Shape, diversity, flops, nonzero, option, small
from comparing.workshop import RECORD, CellsFailed, Workshop
from filelock import FileLock

from nxm_hf import NxMConfig, attach, recipes
from nxm_hf.cli import recipe_guide
from nxm_hf.patterns import parse
from tests.support.comparison_cells import (
    made_labels,
    made_record,
    write_cells,
    write_model,
    write_predictions,
    write_rows,
)

GLUE = Path(compare.__file__).parent
POINT = (("learning_rate", "1e-4"),)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_model(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return str(write_rows(tmp_path_factory.mktemp("rows")))


def options(model, rows, folder, *more: str) -> list[str]:
    """A comparison of asp on eight rows, in two steps."""
    words = ["--model_name_or_path", model, "--dataset_name", rows, "--output_dir", str(folder), "--seeds", "0"]
    return [
        *words,
        "--tasks",
        "mrpc",
        "--recipes",
        "asp",
        "--max_steps",
        "2",
        "--use_cpu",
        "--report_to",
        "none",
        *more,
    ]


# -- cells --------------------------------------------------------------------------------------------------------


def test_names_of_cells_are_those_of_studies_that_already_run():
    cell = Cell("cola", "admm settle=0.3 rho=0.01", 2, POINT, 0.1, "bert-base-uncased", ("--max_steps", "5", "--bf16"))
    assert Cell("mrpc", "asp", 0).name == "mrpc-asp-0-460920fe37"
    assert cell.name == "cola-admm-2-1a48672208"


@pytest.mark.parametrize("recipe", [*recipes.names(), "admm settle=0.3 rho=0.01", "asp pattern=4:8"])
def test_run_glue_reads_what_a_cell_says(recipe):
    cell = Cell("rte", recipe, 7, (*POINT, ("warmup", "0.1")) if recipe != "dense" else POINT, 0.1, "m", ("--use_cpu",))
    run = run_glue.read_options(cell.words(Path("out")))
    assert run.sparsity == cell.config and run.training.seed == 7 and run.training.learning_rate == 1e-4
    assert (run.task, run.data.hold_out, run.model.model_name_or_path) == ("rte", 0.1, "m")


def test_a_taught_cell_learns_from_the_dense_one_of_its_seed_and_options():
    point = (*POINT, ("rho", "0.01"))
    taught = Cell("mrpc", "admm teacher=dense weight=0.9 settle=0.2", 3, point, 0.1, "m", ("--use_cpu",))
    assert taught.teacher == Cell("mrpc", "dense", 3, POINT, 0.1, "m", ("--use_cpu",))
    assert taught.teacher.teacher is None and Cell("mrpc", "admm", 3).teacher is None
    run = run_glue.read_options(taught.words(Path("out/cells/here")))
    assert run.model.teacher == str(Path("out/cells") / taught.teacher.name)
    assert json.loads(run.model.distillation) == {"weight": 0.9}
    assert run.sparsity == NxMConfig("admm", settings={"rho": 0.01}, settle=0.2)


WRONG = [
    (["--recipes", "amdm"], "no recipe 'amdm'.*Write 'admm'"),
    (["--recipes", "admm rhoo=1"], "'rhoo' to set; the recipe 'admm' has rho"),
    (["--recipes", "admm settle"], "'settle' of the recipe .* sets nothing; .*'settle=0.3'"),
    (["--recipes", ""], "A recipe is empty"),
    (["--recipes", "admm rho=-1"], "rho"),
    (["--recipes", "admm teacher=bert"], "write 'admm teacher=dense'"),
    (["--recipes", "admm weight=0.5"], "write 'admm teacher=dense'"),
    (["--recipes", "admm teacher=dense weight=7"], "weight must be a number from 0 to 1"),
    (["--recipes", "small"], "add --from_scratch True"),
    (["--recipes", "small rho=1", "--from_scratch"], "takes a pattern alone; got rho"),
    (["--grid", "learning_rat=1e-4"], "learning_rat.*Did you mean learning_rate"),
    (["--grid", "rho=0.1"], "Neither run_glue.py nor one of the recipes has 'rho'"),
    (["--grid", "seed=1,2"], "write it as --seeds 0 1 2"),
    (["--grid", "learning_rate=fast"], "invalid float value: 'fast'"),
    (["--grid", "learning_rate"], "learning_rate=3e-5,1e-4"),
    (["--grid", "learning_rate=1e-4,"], "learning_rate=3e-5,1e-4"),
    (["--per_device_train_batchsize", "8"], "Did you mean --per_device_train_batch_size"),
    (["--seed", "3"], "--seed is told by each cell.*--seeds 0 1 2"),
    (["--pattern", "4:8"], "--pattern is told by each cell"),
    (["--weight_decay", "much"], "invalid float value: 'much'"),
    (["--sweep", "roh"], "no sweep 'roh'.*Did you mean rho"),
    (["--sweep", "rho=1e-3,"], "has an empty value"),
    (["--search", "3", "--space", "learning_rate"], "write a range after '='"),
    (["--search", "3", "--space", "learning_rate=1e-3:1e-5:log"], "is no range"),
    (["--search", "3", "--space", "rhoo=1:2"], "'rhoo'"),
    (["--search", "3", "--preset", "nxmtransformer"], "leave one of them out"),
    (["--model_name_or_path", "no/where/at/all"], "is no model that can be read"),
]


@pytest.mark.parametrize("words, told", WRONG, ids=[" ".join(words) for words, _ in WRONG])
def test_what_is_wrong_fails_before_anything_runs(words, told, model, rows, tmp_path):
    with pytest.raises(SystemExit, match=told):
        compare.main(options(model, rows, tmp_path / "out", *words))
    assert not (tmp_path / "out").exists()


def test_a_task_that_is_none_is_refused_with_those_there_are(model, rows, tmp_path, capsys):
    with pytest.raises(SystemExit):
        compare.main(options(model, rows, tmp_path / "out", "--tasks", "mrcp"))
    assert "mrpc" in capsys.readouterr().err


def test_without_a_model_or_results_the_error_says_what_to_type(tmp_path):
    with pytest.raises(SystemExit, match=r"add --model_name_or_path"):
        compare.main(["--output_dir", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"run compare\.py without --render first"):
        compare.main(["--render", "--output_dir", str(tmp_path)])


# -- what is compared ---------------------------------------------------------------------------------------------


def asked(*words: str) -> compare.Comparison:
    options, more = compare.read_options(words)
    sweeps = arms.sweep_arms(options.recipes, options.sweep, more)
    grid = arms.read_grid(options.grid or [])
    seeds = (options.seeds, options.search_seeds)
    return compare.Comparison("m", options.tasks, sweeps, *seeds, tuple(more), grid, options.preset)


def test_a_key_of_the_grid_is_only_tried_where_a_recipe_has_it():
    grid = {"learning_rate": ["1", "2"], "rho": ["0.1", "0.2", "0.3"], "pattern": ["2:4", "4:8"]}
    found = {text: len(arms.points(grid, text)) for text in ("dense", "asp", "admm", "admm rho=1", "small", "ste")}
    assert found == {"dense": 2, "asp": 4, "admm": 12, "admm rho=1": 4, "small": 2, "ste": 4}


def test_the_preset_is_the_papers_table_of_hyper_parameters():
    small_tasks = {"5e-5", "7e-5", "9e-5", "1e-4"}, {"3e-3", "6e-3", "1e-2"}, {"10"}
    large_tasks = {"1e-5", "3e-5", "5e-5"}, {"4e-4", "1e-3", "3e-3"}, {"5"}
    tables = {"cola": small_tasks, "stsb": small_tasks, "mrpc": small_tasks, "rte": small_tasks}
    tables |= {"mnli": large_tasks, "qnli": large_tasks, "sst2": large_tasks}
    whole = asked("--preset", "nxmtransformer", "--recipes", "admm", "asp", "dense")
    for task, (rates, strengths, epochs) in tables.items():
        points = [dict(point) for point in whole.points(task, arms.Arm("admm"))]
        assert len(points) == len({tuple(point.items()) for point in points}) == len(rates) * len(strengths) * 2
        for key, values in (("learning_rate", rates), ("rho", strengths), ("num_train_epochs", epochs)):
            assert {point[key] for point in points} == values
        assert {point["per_device_train_batch_size"] for point in points} == {"16", "32"}
        assert len(whole.points(task, arms.Arm("asp"))) == 5 * 2
        assert len(whole.points(task, arms.Arm("dense"))) == (3 if task in ("mnli", "qnli", "sst2") else 5) * 2


def test_what_the_command_line_says_is_not_asked_of_the_preset():
    words = (
        "--preset",
        "nxmtransformer",
        "--recipes",
        "admm",
        "--max_steps",
        "9",
        "--per_device_train_batch_size",
        "8",
    )
    points = asked(*words, "--grid", "rho=0.5").points("rte", arms.Arm("admm"))
    assert len(points) == 4 and {key for point in points for key, _ in point} == {"learning_rate", "rho"}
    assert {dict(point)["rho"] for point in points} == {"0.5"}


@pytest.mark.parametrize("name", [name for name in arms.SWEEPS if name != "budget"])
@pytest.mark.parametrize("given", [["dense", "asp"], ["dense", "asp", "admm settle=0.2", "sr-ste", "reset"]])
def test_a_sweep_trains_every_value_once_and_keeps_what_it_is_seen_against(name, given):
    texts = [arm.recipe for arm in arms.sweep_arms(given, [name], ())]
    configs = map(read_recipe, texts)
    trained = [(config.recipe, str(config.pattern), repr(config.method(parse("2:4")))) for config in configs]
    assert texts[: len(given)] == given and len(set(trained)) == len(texts) > len(given) + 1
    assert all(arm == arms.Arm(arm.recipe) for arm in arms.sweep_arms(given, [name], ()))


def test_a_swept_budget_is_a_part_of_the_budget_given():
    found = arms.sweep_arms(["asp"], ["budget"], ("--bf16", "--max_steps", "200", "--use_cpu"))
    assert found[0] == arms.Arm("asp") and [dict(arm.extra)["max_steps"] for arm in found[1:]] == ["50", "100", "400"]
    assert {arm.more for arm in found[1:]} == {("--bf16", "--use_cpu")}
    (half,) = arms.sweep_arms(["asp"], ["budget=0.5"], ("--num_train_epochs=5",))[1:]
    assert half.extra == (("num_train_epochs", "2.5"),) and half.more == ()
    words = ("--recipes", "asp", "--sweep", "budget=0.5", "--max_steps", "200", "--grid", "learning_rate=1e-3")
    whole = asked(*words)
    cells = whole.final({kind: whole.points(*kind)[0] for kind in whole.kinds})
    budgets = [run_glue.read_options(cell.words(Path("out"))).training.max_steps for cell in cells]
    assert sorted(set(budgets)) == [100, 200]


def test_the_point_is_chosen_on_the_mean_of_the_seeds_and_no_number_never_wins(tmp_path):
    workshop = Workshop(tmp_path)
    scores = {"a": (0.9, 0.1), "b": (0.6, 0.6), "c": (float("nan"), 1.0)}
    tried = [Cell("rte", "asp", seed, (("x", key),), 0.1) for key in scores for seed in (0, 1)]
    for cell in tried:
        record = made_record(replace(cell, grid=()), 0.5) | {"name": cell.name, "grid": cell.grid}
        workshop.results.add(record | {"metrics": {"eval_accuracy": scores[cell.grid[0][1]][cell.seed]}})
    assert compare.choose(workshop, tried) == (("x", "b"),)


def test_the_commands_of_the_readme_are_understood():
    lines = [line for line in (GLUE / "README.md").read_text().splitlines() if line.startswith("python compare.py")]
    assert len(lines) >= 2
    for line in lines:
        whole = asked(*shlex.split(line)[2:])
        check_more(whole.more)
        for kind in whole.kinds:
            for point in whole.points(*kind):
                check_cell(whole.cell(*kind, 0, point))


# -- shapes -------------------------------------------------------------------------------------------------------

WIDE = dict(hidden_size=96, num_attention_heads=6, intermediate_size=384, num_hidden_layers=3, vocab_size=300)
FAMILIES = {
    "bert": transformers.BertConfig(**WIDE),
    "distilbert": transformers.DistilBertConfig(dim=96, n_heads=6, hidden_dim=384, n_layers=3, vocab_size=300),
    "roberta": transformers.RobertaConfig(**WIDE),
    "electra": transformers.ElectraConfig(**WIDE, embedding_size=48),
    "deberta": transformers.DebertaV2Config(**WIDE, pooler_hidden_size=96),
    "modernbert": transformers.ModernBertConfig(**WIDE, pad_token_id=0, cls_token_id=1, sep_token_id=2),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_small_model_has_as_many_weights_as_the_sparse_one_has_non_zeros(family, tmp_path):
    FAMILIES[family].save_pretrained(tmp_path)
    shape = Shape.of(str(tmp_path), "mnli", ())
    for pattern, most in (("2:4", 0.01), ("1:4", 0.02)):
        narrow = small(shape, pattern)
        wanted = nonzero(shape, json.dumps(pattern))
        assert narrow.weights == pytest.approx(wanted, rel=most) and narrow.weights < shape.weights
        config = run_glue.AutoConfig.from_pretrained(tmp_path, num_labels=3, **json.loads(narrow.overrides))
        model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
        logits = model(torch.arange(2 * 7).view(2, 7) + 5).logits
        assert logits.shape == (2, 3) and sum(p.numel() for p in model.parameters()) == narrow.weights


def test_the_sparse_models_non_zeros_are_those_that_pruning_leaves(model):
    bert = transformers.AutoModelForSequenceClassification.from_pretrained(model)
    for parameter in bert.parameters():  # whose initial zeros would be counted as pruned
        parameter.data.normal_()
    optimizer = torch.optim.SGD(bert.parameters(), lr=0.0)
    engine = attach(bert, optimizer, NxMConfig("asp", pattern="1:4"), total_steps=1)
    bert(torch.arange(8)[None]).logits.sum().backward()
    optimizer.step()
    engine.finish()
    left = sum(int(parameter.count_nonzero()) for parameter in bert.parameters())
    assert nonzero(Shape.of(model, "mrpc", ()), '"1:4"') == left


def test_flops_and_diversity_are_those_of_the_shape_and_the_schedule(model):
    shape = Shape.of(model, "mrpc", ())
    dense, asp = (flops(shape, NxMConfig(name).to_json_string(), 10, 16) for name in ("dense", "asp"))
    late = flops(shape, NxMConfig("asp", warmup=0.5).to_json_string(), 10, 16)
    # Two blocks of 4 * 32 * 32 + 2 * 32 * 64 weights, on 16 tokens, 2 FLOPs a weight: one of three products saves half.
    saved = 2 * 16 * 2 * (4 * 32 * 32 + 2 * 32 * 64) * 0.5
    assert dense - asp == pytest.approx(saved) and dense - late == pytest.approx(saved / 2)
    assert diversity(shape, NxMConfig("asp", pattern="2:4").to_json_string()) == pytest.approx(math.log10(6) / 4)
    assert diversity(shape, NxMConfig("dense").to_json_string()) in (None, 0.0)


def test_an_option_is_found_however_it_is_written():
    words = ["--bf16", "--max_steps", "5", "--max-seq-length=64", "--max_steps", "7"]
    assert option(words, "max_steps") == "7" and option(words, "max_seq_length") == "64"
    assert option(words, "bf16") == "true" and option(words, "seed") is None


# -- statistics ---------------------------------------------------------------------------------------------------


def by_seed(recipe: str, right: float, task: str = "mrpc", seeds=(0, 1, 2), rows: int = 60, **words) -> dict[int, dict]:
    cells = [Cell(task, recipe, seed, POINT, **words) for seed in seeds]
    return {cell.seed: made_record(cell, right, rows) for cell in cells}


def test_the_geometric_mean_of_the_papers_table_is_the_papers_average():
    table = {
        81.78: (84.5, 84.8, 92.5, 91.6, 56.7, 89.6, 91.7, 70.7),
        78.84: (83.3, 83.4, 91.9, 90.6, 51.7, 88.7, 88.1, 63.9),
        80.49: (82.3, 83.4, 92.3, 90.4, 55.3, 89.3, 90.8, 68.6),
    }
    for average, (matched, mismatched, sst2, qnli, cola, stsb, mrpc, rte) in table.items():
        metrics = {
            "mnli": {"eval_accuracy": matched, "eval_mismatched_accuracy": mismatched},
            "sst2": {"eval_accuracy": sst2},
            "qnli": {"eval_accuracy": qnli},
            "cola": {"eval_matthews_correlation": cola},
            "stsb": {"eval_pearson": 0.0, "eval_spearmanr": stsb},
            "mrpc": {"eval_f1": mrpc, "eval_accuracy": 0.0},
            "rte": {"eval_accuracy": rte},
            "qqp": {"eval_f1": 1.0, "eval_accuracy": 1.0},
            "wnli": {"eval_accuracy": 1.0},
        }
        numbers = [n for task, of in metrics.items() for n in measures.paper_scores([{"task": task, "metrics": of}])]
        assert len(numbers) == 8 and measures.geometric_mean(numbers) == pytest.approx(average, abs=0.006)
    assert math.isnan(measures.geometric_mean([0.5, 0.0])) and math.isnan(measures.geometric_mean([]))


@pytest.mark.parametrize("seeds", [(0, 1, 2), (4,)])
@pytest.mark.parametrize("task", ["mrpc", "cola", "stsb"])
def test_the_interval_is_that_of_the_bootstrap_written_out(task, seeds):
    ours, theirs = (by_seed(name, right, task, seeds) for name, right in (("admm", 0.8), ("asp", 0.6)))
    labels = made_labels(task, 60)
    scores = measures.row_scores(task, np.asarray(labels), [*ours.values(), *theirs.values()])
    found = measures.difference(ours, theirs, scores)
    metric = {"mrpc": glue_metric.f1, "cola": glue_metric.matthews_correlation, "stsb": glue_metric.pearson}[task]
    of_rows, of_seeds = (measures.generator(task, what) for what in ("rows", "seeds"))
    rows = [[int(row) for row in of_rows.integers(60, size=60)] for _ in range(measures.REPLICATES)]
    drawn = of_seeds.integers(len(seeds), size=(measures.REPLICATES, len(seeds)))
    values = []
    for replicate in range(0, measures.REPLICATES, 7):
        total = 0.0
        for place in drawn[replicate]:
            for sign, side in ((1, ours), (-1, theirs)):
                said = side[seeds[place]]["predictions"]
                picked = [said[row] for row in rows[replicate]], [labels[row] for row in rows[replicate]]
                total += sign * metric(*map(np.asarray, picked))
        values.append(total / len(seeds))
    assert found.replicates[::7] == pytest.approx(np.asarray(values))
    assert found.low, found.high == pytest.approx(np.quantile(found.replicates, [0.025, 0.975]))
    main = {"mrpc": "eval_f1", "cola": "eval_matthews_correlation", "stsb": "eval_pearson"}[task]
    apart = [ours[seed]["metrics"][main] - theirs[seed]["metrics"][main] for seed in seeds]
    assert found.mean == pytest.approx(sum(apart) / len(apart)) and found.seeds == len(seeds)


def test_with_one_seed_the_interval_agrees_with_that_of_scipy():
    from scipy.stats import bootstrap

    ours, theirs = (by_seed(name, right, "rte", (0,), 300) for name, right in (("admm", 0.8), ("asp", 0.7)))
    labels = np.asarray(made_labels("rte", 300))
    found = measures.difference(ours, theirs, measures.row_scores("rte", labels, [ours[0], theirs[0]]))
    right = [(np.asarray(side[0]["predictions"]) == labels).astype(float) for side in (ours, theirs)]
    wide = bootstrap((right[0] - right[1],), np.mean, n_resamples=5000, method="percentile", rng=0).confidence_interval
    assert (found.low, found.high) == pytest.approx((wide.low, wide.high), abs=0.012)


def test_a_recipe_differs_from_itself_by_nothing_whatever_is_drawn():
    asp = by_seed("asp", 0.7)
    found = measures.difference(
        asp, asp, measures.row_scores("mrpc", np.asarray(made_labels("mrpc", 60)), [*asp.values()])
    )
    assert found.mean == found.low == found.high == 0 and not found.replicates.any()


def test_without_rows_only_seeds_are_drawn_and_of_one_seed_there_is_no_interval():
    ours, theirs = by_seed("admm", 0.8), by_seed("asp", 0.6)
    scores = measures.row_scores("mrpc", None, [*ours.values(), *theirs.values()])
    found = measures.difference(ours, theirs, scores)
    apart = [ours[seed]["metrics"]["eval_f1"] - theirs[seed]["metrics"]["eval_f1"] for seed in range(3)]
    assert not found.rows and min(apart) <= found.low <= found.mean <= found.high <= max(apart)
    single = measures.difference({0: ours[0]}, theirs, scores)
    assert single.mean == pytest.approx(apart[0]) and math.isnan(single.low) and math.isnan(single.high)
    assert measures.difference({5: ours[0]}, theirs, scores) is None


def test_the_same_answer_always_scores_what_trying_each_answer_gives():
    labels = np.asarray(made_labels("mrpc", 60))
    ones = int(labels.sum())
    found = measures.constant_scores("mrpc", labels)
    assert found["f1"] == pytest.approx(2 * ones / (60 + ones)) and found["accuracy"] == max(ones, 60 - ones) / 60
    assert measures.constant_scores("cola", np.asarray(made_labels("cola", 60)))["matthews_correlation"] == 0
    assert math.isnan(measures.constant_scores("stsb", np.asarray(made_labels("stsb", 60)))["pearson"])


def test_agreement_counts_rows_and_of_scores_it_is_their_correlation():
    one, other = {"task": "rte", "predictions": [0, 1, 1, 0]}, {"task": "rte", "predictions": [0, 1, 0, 0]}
    assert measures.agreement(one, other) == 0.75
    one, other = {"task": "stsb", "predictions": [1.0, 2.0, 3.0]}, {"task": "stsb", "predictions": [2.0, 4.0, 6.0]}
    assert measures.agreement(one, other) == pytest.approx(1.0)


# -- results and the page -----------------------------------------------------------------------------------------


def test_a_line_that_a_kill_cut_off_is_neither_read_nor_built_upon(tmp_path):
    path = tmp_path / "results.jsonl"
    first, second = (made_record(Cell("rte", "asp", seed), 0.7) for seed in (0, 1))
    Results(path).add(first)
    with path.open("a") as file:
        file.write(json.dumps(second)[:90])
    again = Results(path)
    assert list(again.records) == [first["name"]]
    again.add(second)
    assert list(Results(path).records) == [first["name"], second["name"]]
    path.write_text(path.read_text().replace("{", "(", 1))
    with pytest.raises(ValueError, match=r"Line 1 of .*results.jsonl is no record .*Remove it"):
        Results(path)


@pytest.mark.parametrize("hold_out", (0.0, 0.1))
def test_of_a_trial_no_predictions_are_kept(hold_out, tmp_path):
    """A search on a large task would write down hundreds of thousands that nothing reads."""
    cell = Cell("mrpc", "asp", 0, POINT, hold_out)
    made = made_record(cell, 0.7)
    write_predictions(tmp_path, made)
    (tmp_path / "all_results.json").write_text(json.dumps(made["metrics"]))
    (tmp_path / "trainer_state.json").write_text('{"log_history": [], "global_step": 2}')
    record = summary(cell, tmp_path, 1.0)
    assert record["predictions"] == ([] if hold_out else made["predictions"])
    assert record["recall"] == made["recall"] and record["metrics"] == made["metrics"]


def test_writers_on_one_file_lose_no_line(tmp_path):
    path = tmp_path / "results.jsonl"

    def write(writer: int) -> None:
        results = Results(path)
        for number in range(15):
            results.add({"name": f"{writer}-{number}", "long": "x" * 5000})

    writers = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    assert len(Results(path).records) == 60 and path.read_text().count("\n") == 60


def test_a_line_that_another_is_writing_is_waited_for_and_not_cut_off(tmp_path):
    results = Results(tmp_path / "results.jsonl")
    line = json.dumps({"name": "theirs"}) + "\n"
    other = FileLock(results.lock, thread_local=False)
    other.acquire()
    ours = threading.Thread(target=results.add, args=({"name": "ours"},))
    with results.path.open("a") as file:
        file.write(line[:9])
        file.flush()
        ours.start()
        ours.join(0.2)
        file.write(line[9:])
    other.release()
    ours.join()
    assert list(Results(results.path).records) == ["theirs", "ours"]


def study(folder: Path, model: str, seeds=(0, 1, 2), with_rows: bool = True) -> list[dict]:
    """Four arms on two tasks, with the numbers that a page is to show."""
    rights = {"dense": 0.95, "asp": 0.6, "admm rho=0.01": 0.8, "admm rho=0.01 teacher=dense": 0.85}
    records = [
        made_record(Cell(task, recipe, seed, POINT, model=model), right)
        | ({"teacher": "t", "teacher_seconds": 5.0} if "teacher" in recipe else {})
        for task in ("mrpc", "stsb")
        for recipe, right in rights.items()
        for seed in seeds
    ]
    write_cells(folder, records, with_rows)
    return records


def table_rows(text: str, task: str, place: int) -> dict[str, list[str]]:
    """The rows of a table in a task's part of the page, by recipe."""
    part = text.split(f"\n### {task}\n")[1].split("\n### ")[0]
    lines = re.findall(r"(?:^\|.*\n?)+", part, re.MULTILINE)[place].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0].strip("`"): row[1:] for row in rows}


@pytest.fixture(scope="module")
def page(tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("study")
    records = study(folder, model)
    return records, render(folder), folder


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


def test_plots_are_drawn_and_the_page_shows_them(page):
    pytest.importorskip("matplotlib")
    _, text, folder = page
    pictures = re.findall(r"!\[\w+\]\((.+)\)", text)
    assert {"recipes.png", "flops.png", "similarity.png"} <= set(pictures)
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in pictures)


def test_without_matplotlib_the_page_says_what_to_install(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    study(tmp_path, model, seeds=(0,))
    text = render(tmp_path)
    assert "pip install nxm-hf[report]" in text and not list(tmp_path.glob("*.png"))


def test_with_one_seed_there_is_no_spread_and_the_page_says_so(model, tmp_path):
    study(tmp_path, model, seeds=(3,))
    text = render(tmp_path)
    assert "±" not in text.replace("there is no ±", "") and "With one seed there is no ±" in text
    assert re.fullmatch(r"0\.\d{4}", table_rows(text, "mrpc", 0)["asp"][1])


def test_a_page_of_records_alone_says_that_the_rows_are_gone(model, tmp_path):
    study(tmp_path, model, with_rows=False)
    text = render(tmp_path)
    assert "The files of predictions of mrpc, stsb are gone" in text
    assert re.fullmatch(r"\+0\.\d+ \[[+-]0\.\d+, [+-]0\.\d+\]", table_rows(text, "mrpc", 1)["admm rho=0.01"][0])


def test_a_model_out_of_reach_is_looked_for_once_and_the_page_says_what_it_lacks(tmp_path, monkeypatch):
    """Without a network each look takes half a minute, and a page has a column of FLOPs for every arm and task."""
    read, looks = transformers.AutoConfig.from_pretrained, []

    def counted(model, *args, **words):
        looks.append(model)
        return read(model, *args, **words)

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", counted)
    study(tmp_path, "./a-model-out-of-reach", seeds=(0,))
    text = render(tmp_path)
    assert looks == ["./a-model-out-of-reach"]
    assert "The config of ./a-model-out-of-reach cannot be read here, so FLOPs and numbers of masks" in text
    assert table_rows(text, "mrpc", 2)["asp"][0] == "-" and not (tmp_path / "flops.png").exists()


def test_what_was_planned_and_is_missing_is_listed(model, tmp_path):
    cells = [Cell("mrpc", recipe, seed, POINT, model=model) for recipe in ("dense", "asp") for seed in (0, 1)]
    write_cells(tmp_path, [made_record(cell, 0.7) for cell in cells[:3]])
    assert "- mrpc, `asp`, seed 1" in render(tmp_path)  # by what the others have
    Plan(tmp_path / "plan.json").add([*cells, Cell("rte", "ste", 0, POINT, model=model)], "python compare.py --this")
    text = render(tmp_path)
    assert (
        "**2 cells are missing**" in text
        and "- rte, `ste`, seed 0, learning_rate=1e-4" in text
        and "compare.py --this" in text
    )


def test_what_a_grid_chose_anew_takes_the_place_of_what_it_chose_before(model, tmp_path):
    old, new = (Cell("mrpc", "dense", 0, (("learning_rate", rate),), model=model) for rate in ("1e-3", "1e-4"))
    asp = replace(new, recipe="asp")
    write_cells(tmp_path, [made_record(old, 0.5), made_record(new, 0.9), made_record(asp, 0.7)])
    assert {"dense [learning_rate=1e-3]", "dense [learning_rate=1e-4]"} <= set(table_rows(render(tmp_path), "mrpc", 0))
    plan = Plan(tmp_path / "plan.json")
    plan.add([old], "first")
    plan.add([new], "second")
    assert plan.read() == ([new], ["first", "second"])
    shown = table_rows(render(tmp_path), "mrpc", 0)
    assert (
        list(shown)[1:] == ["dense", "asp"]
        and shown["dense"][1] == f"{made_record(new, 0.9)['metrics']['eval_f1']:.4f}"
    )


def test_the_page_shows_what_the_settings_were_chosen_by(model, tmp_path):
    final = [Cell(task, recipe, 0, POINT, model=model) for task in ("mrpc", "rte") for recipe in ("dense", "asp")]
    tried = {"1e-4": (0.9, 0.6), "1e-3": (0.5, 0.7), "1e-2": (0.8, 0.8), "1": (float("nan"),) * 2}
    for value in range(2, 6):
        tried[f"{value}"] = (0.1, 0.1 + value / 100)
    trials = [
        made_record(Cell("mrpc", "asp", seed, (("learning_rate", rate),), 0.1, model), 0.5)
        | {"metrics": {"eval_f1": scores[seed]}}
        for rate, scores in tried.items()
        for seed in (0, 1)
    ]
    others = [trials[0] | {"name": "other", "model": "other", "metrics": {"eval_f1": 1.0}}]
    write_cells(tmp_path, [*map(made_record, final, (0.9, 0.6, 0.9, 0.6)), *trials, *others])
    text = render(tmp_path)
    assert text.count("held out, with 2 seeds:") == 1 and "Tried on 10% of the training rows" in text
    assert table_rows(text, "mrpc", 3) == {
        "asp": [
            "learning_rate=1e-2: 0.8000",
            "learning_rate=1e-4: 0.7500; learning_rate=1e-3: 0.6000; learning_rate=5: 0.1250; "
            "learning_rate=4: 0.1200; 3 more",
        ]
    }


def test_patterns_and_budgets_are_held_against_their_own_kind(model, tmp_path):
    grid = {"short": (*POINT, ("max_steps", "50")), "long": (*POINT, ("max_steps", "100"))}
    rights = {"dense": 0.9, "asp": 0.6, "asp pattern=1:4": 0.5, "admm pattern=1:4": 0.7}
    records = [
        made_record(Cell("mrpc", recipe, 0, point, model=model), right - 0.1 * (budget == "short"))
        for budget, point in grid.items()
        for recipe, right in rights.items()
    ]
    write_cells(tmp_path, records)
    f1 = {(r["recipe"], r["grid"][1][1]): r["metrics"]["eval_f1"] for r in records}
    text = render(tmp_path)
    shown = table_rows(text, "mrpc", 1)
    named = {"50": "", "100": " [max_steps=100]"}
    assert "for max_steps=50 where no other budget is named" in text
    for steps in named:
        apart = f1["admm pattern=1:4", steps] - f1["asp pattern=1:4", steps]
        assert float(shown[f"admm pattern=1:4{named[steps]}"][0].split()[0]) == pytest.approx(apart, abs=6e-5)
        apart = f1["asp", steps] - f1["dense", steps]
        assert float(shown[f"asp{named[steps]}"][1].split()[0]) == pytest.approx(apart, abs=6e-5)


def test_f_is_the_way_from_the_small_model_to_the_dense_one(model, tmp_path):
    more = ("--from_scratch",)
    rights = {"small": 0.5, "dense": 0.9, "asp": 0.6, "admm": 0.8}
    records = {
        recipe: made_record(Cell("rte", recipe, 0, POINT, model=model, more=more), right)
        for recipe, right in rights.items()
    }
    write_cells(tmp_path, [*records.values()])
    text = render(tmp_path)
    shown, costs = table_rows(text, "rte", 0), table_rows(text, "rte", 2)
    low, high, ours = (records[name]["metrics"]["eval_accuracy"] for name in ("small", "dense", "admm"))
    assert shown["admm"][-1] == f"{(ours - low) / (high - low):.3f}"
    assert shown["small"][-1] == "0.000" and shown["dense"][-1] == "1.000"
    assert 0.2 < float(costs["small"][0]) < 0.9


# -- running ------------------------------------------------------------------------------------------------------


def test_a_cell_that_is_recorded_is_not_trained(tmp_path):
    cell = Cell("rte", "asp", 0, POINT, model="nowhere")
    write_cells(tmp_path, [made_record(cell, 0.7)])
    Workshop(tmp_path).run([cell, cell])
    assert not list((tmp_path / "cells").glob("*.log"))


def test_a_whole_cell_that_was_killed_before_it_was_recorded_is_recorded_not_trained(tmp_path):
    cell = Cell("rte", "asp", 0, POINT, model="nowhere")
    record = json.loads(json.dumps(made_record(cell, 0.7)))
    place = write_cells(tmp_path, []) / "cells" / cell.name
    write_predictions(place, record)
    (place / RECORD).write_text(json.dumps(record))
    Workshop(tmp_path).run([cell])
    assert Results(tmp_path / "results.jsonl").records == {cell.name: record}


def test_a_cell_that_another_process_is_at_is_waited_for_and_not_trained_again(tmp_path):
    cells = [Cell("rte", "asp", seed, POINT, model="nowhere") for seed in (0, 1)]
    here = Workshop(tmp_path)
    write_cells(tmp_path, [made_record(cells[1], 0.7)])
    other = FileLock(tmp_path / "cells" / ".locks" / cells[0].name, thread_local=False)
    other.acquire()

    def finish_elsewhere() -> None:
        write_cells(tmp_path, [made_record(cells[0], 0.7)])
        other.release()

    elsewhere = threading.Timer(0.2, finish_elsewhere)
    elsewhere.start()
    here.run(cells)
    elsewhere.join()
    assert len(here.results.of(cells)) == 2 and not list((tmp_path / "cells").glob("*.log"))


def test_a_cell_ends_when_its_parent_is_killed(tmp_path):
    """The parent is killed with -9; the end of the child is the end of its output."""
    # A module that never ends, in the place of the script that a cell runs.
    (tmp_path / "run_glue.py").write_text("import time\ntime.sleep(600)\n")
    child = str(shutil.copy(GLUE / "run_cell.py", tmp_path))
    code = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, {child!r}], stdin=subprocess.PIPE)\n"
        "print('started', flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout.readline() == b"started\n"
        os.kill(parent.pid, signal.SIGKILL)
        assert parent.stdout.read() == b""  # the end comes only when the child has it open no more


def test_a_search_goes_on_where_it_was_and_ends_with_the_best_point(model, rows, tmp_path, capsys):
    pytest.importorskip("optuna")
    more = ("--dataset_name", rows, "--max_steps", "2", "--use_cpu", "--report_to", "none")
    rights = {"0.001": 0.6, "0.002": 0.9, "0.003": 0.7}
    cells = [
        (Cell("mrpc", "asp", 0, (("learning_rate", rate),), held_out, model, more), right)
        for rate, right in rights.items()
        for held_out in (0.1, 0.0)
    ]
    write_cells(tmp_path, [made_record(cell, right) for cell, right in cells])
    words = options(model, rows, tmp_path, "--search", "9", "--space", "learning_rate=0.001,0.002,0.003", "rho=1:2")
    with pytest.raises(SystemExit, match="'rho'"):
        compare.main(words)
    words = words[:-1]
    compare.main(words)
    said = capsys.readouterr().out
    assert "0 of 9 trials are finished" in said and "| learning_rate=0.002 |" in said
    compare.main(words)
    assert "9 of 9 trials are finished" in capsys.readouterr().out
    assert not list((tmp_path / "cells").glob("*.log"))  # every trial was there already


@pytest.mark.parametrize("trials, whole", [(3, False), (4, True), (9, True)])
def test_a_search_that_can_try_every_point_does_so_first(trials, whole, tmp_path):
    """Points that are drawn left one of three choices out of nine trials, once in 38 searches."""
    pytest.importorskip("optuna")
    space = read_space(["learning_rate=1e-4,1e-3", "num_train_epochs=2,4"])
    search = Search(Workshop(tmp_path, [""], False), space, trials, [0], f"sqlite:///{tmp_path}/s.db")
    cell = Cell("mrpc", "asp", 0, (*POINT, ("weight_decay", "0")), 0.1, "a/model")
    for _ in range(2):  # whoever comes second finds them queued
        study = search.study(cell)
    assert len(study.trials) == (4 if whole else 0)

    def draw() -> tuple:
        trial = search.ask(study)
        return trial, tuple(axis.suggest(trial, key) for key, axis in space.items())

    drawn = [draw() for _ in range(4)]
    if whole:
        assert {point for _, point in drawn} == {("1e-4", "2"), ("1e-4", "4"), ("1e-3", "2"), ("1e-3", "4")}
        for trial, _ in drawn[:3]:
            study.tell(trial, 0.5)
        study = search.study(cell)  # the fourth was killed, and is tried again
        assert draw()[1] == drawn[3][1]


def test_searches_that_share_a_study_try_different_points_and_again_the_same(tmp_path):
    """Whoever else is at work: two that begin together once drew the same chance, and each point was tried twice."""
    pytest.importorskip("optuna")
    # What is drawn follows from the cell's name, which must not have the name of a temporary folder in it.
    cell, space = Cell("mrpc", "asp", 0, POINT, 0.1, "a/model"), read_space(["learning_rate=1e-5:1e-3:log"])
    drawn = []
    for folder in ("first", "again"):
        storage = f"sqlite:///{tmp_path / folder}.db"
        searches = [Search(Workshop(tmp_path, [""], False), space, 4, [0], storage) for _ in range(2)]
        studies = [search.study(cell) for search in searches]
        asked = [search.ask(study) for search, study in zip(searches, studies, strict=True)]
        drawn.append([space["learning_rate"].suggest(trial, "learning_rate") for trial in asked])
    assert drawn[0] == drawn[1] and len(set(drawn[0])) == 2


def test_a_search_without_optuna_says_what_to_install(model, rows, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SystemExit, match="pip install optuna"):
        compare.main(options(model, rows, tmp_path, "--search", "1"))


@pytest.mark.parametrize(
    "one", recipe_guide.MEASUREMENTS, ids=lambda one: f"{one.recipe} {one.pattern} on {'-'.join(one.tasks)}"
)
def test_what_the_guide_says_of_recipes_is_what_the_committed_results_say(one):
    folders = [path for path in (GLUE / "results").iterdir() if path.name != "demo"]
    assert one.gap_closed in [round(share, 2) for folder in folders for share in closed(folder, one)]


def closed(folder: Path, one: recipe_guide.Measurement) -> list[float]:
    """The share of the gap that a folder of results tells; none where they lack the recipe, a task or seeds."""
    found: dict[tuple, float] = {}
    planned = {cell.name for cell in Plan(folder / "plan.json").read()[0]}  # with the learning rates that were chosen
    for record in Results(folder / "results.jsonl").records.values():
        if record["name"] in planned and record["config"]["pattern"] in (one.pattern, "2:4"):
            best = record["metrics"][f"eval_{run_glue.TASKS[record['task']].best}"]
            found[record["recipe"].replace(f" pattern={one.pattern}", ""), record["task"], record["seed"]] = best
    of, shared = (one.recipe, "asp", "dense"), []
    for task in (name.lower().replace("-", "") for name in one.tasks):
        seeds = [seed for seed in range(9) if all((recipe, task, seed) in found for recipe in of)]
        if len(seeds) < one.seeds:
            return []
        shared.append([np.mean([found[recipe, task, seed] for seed in seeds]) for recipe in of])
    ours, low, high = np.mean(shared, axis=0)
    return [(ours - low) / (high - low)]


@pytest.mark.slow
def test_recipes_are_trained_taught_kept_and_never_trained_again(model, rows, tmp_path, capsys):
    """The real thing, two trainings: the teacher's weights go once the student has learnt nothing more from them."""
    words = options(model, rows, tmp_path, "--recipes", "dense", "asp teacher=dense", "--devices", "", "")
    compare.main(words)
    said = capsys.readouterr().out
    assert "1 teachers, 1 to run" in said and "2 cells, 1 to run" in said
    records = Results(tmp_path / "results.jsonl").records
    dense, taught = sorted(records.values(), key=lambda record: record["recipe"], reverse=True)
    assert dense["steps"] == 2 and len(dense["predictions"]) == 8
    assert taught["teacher"] == dense["name"] and taught["teacher_seconds"] == dense["seconds"]
    student = tmp_path / "cells" / taught["name"]
    assert list((tmp_path / "cells" / dense["name"]).glob("*.safetensors")) and not list(student.glob("*.safetensors"))
    assert "1.000" in table_rows((tmp_path / PAGE).read_text(), "mrpc", 0)["dense"]
    (tmp_path / "cells" / "mrpc-asp-0-dead.partial-1").mkdir()
    before = (tmp_path / "results.jsonl").read_bytes()
    compare.main(words)
    assert "2 cells, 0 to run" in capsys.readouterr().out and (tmp_path / "results.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_cell_that_fails_says_why_and_the_others_are_kept(model, rows, tmp_path, capsys):
    good = Cell("mrpc", "asp", 0, POINT, model=model)
    write_cells(tmp_path, [made_record(good, 0.7)])
    bad = Cell("mrpc", "asp", 1, POINT, model=model, more=("--dataset_name", str(tmp_path / "cells"), "--use_cpu"))
    with pytest.raises(CellsFailed, match=r"1 of 1 cells failed; their logs: .*\.log"):
        Workshop(tmp_path).run([good, bad])
    assert "failed: ValueError: " in capsys.readouterr().out
    assert list(Results(tmp_path / "results.jsonl").records) == [good.name]
