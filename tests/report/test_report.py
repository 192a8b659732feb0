"""AnalysisCallback and the report: what is recorded is true, what is drawn is what was recorded."""

import builtins
import html
import json
import random
import re
import shutil
from html.parser import HTMLParser

import numpy
import pytest
import torch
from transformers import Trainer, TrainerCallback

from nxm_hf import AnalysisCallback, NxMCallback, NxMConfig, NxMTrainer, analysis
from nxm_hf.analysis import recording
from nxm_hf.analysis.recording import ANALYSIS_FILE, FOLLOWED_WEIGHTS, TRACED_WEIGHTS, decode_in_mask
from nxm_hf.cli.main import main
from nxm_hf.report import charts, cost, read_runs, write_report
from nxm_hf.report.axes import fit_axis
from nxm_hf.report.charts import in_mask_counts, magnitude_by_count, snapshots
from nxm_hf.report.training_page import training_page
from tests.support.models import assert_equal_weights, make_arguments, make_bert, make_rows
from tests.support.toy_training import trained

SECTIONS = ["summary", "curves", "layers", "density", "weights", "flops", "config", "environment", "verification"]
VOID = {"meta", "br", "hr", "img", "link", "input", "wbr"}
RECIPES = {"admm": dict(settings={"steps": 3, "rho": 0.01}), "sr-ste": {}, "rigl": dict(settings={"every": 2})}


def _trainer(folder, recipe="sr-ste", callbacks=(AnalysisCallback,), kind=NxMTrainer, **changes):
    given = {} if kind is Trainer else {"sparsity": NxMConfig(recipe, "2:4", **RECIPES.get(recipe, {}))}
    rows, made = make_rows(), [callback() if isinstance(callback, type) else callback for callback in callbacks]
    words = dict(eval_strategy="steps", eval_steps=4, logging_steps=2)
    args = make_arguments(folder, **{**words, **changes})
    return kind(model=make_bert(), args=args, train_dataset=rows, eval_dataset=rows[:16], callbacks=made, **given)


def _run(folder, recipe="sr-ste", **words):
    trainer = _trainer(folder, recipe, **words)
    trainer.train()
    trainer.save_model()
    return folder


def _analysis(folder):
    return json.loads((folder / ANALYSIS_FILE).read_text())


def _log(folder):
    return json.loads((folder / "checkpoint-12" / "trainer_state.json").read_text())["log_history"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    return {recipe: _run(folder / recipe, recipe) for recipe in RECIPES}


@pytest.fixture
def runs(made, tmp_path):
    """Directories that a test may spoil."""
    return {recipe: shutil.copytree(folder, tmp_path / recipe) for recipe, folder in made.items()}


# -- what is recorded --------------------------------------------------------------------------------------------------


class Witness(TrainerCallback):
    """Looks at each logging step by itself: the two largest of four, by sorting."""

    def __init__(self, callback, slot):
        self.callback, self.slot, self.masks, self.residuals = callback, slot, [], []

    def on_step_begin(self, args, state, control, **kwargs):
        if not self.masks:
            self._look()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self._look()

    def _look(self):
        tensors = self.callback.engine.tensors()
        names = [name.removesuffix("/weight") for name in tensors if name.endswith("/weight")]
        dense = {name: tensors.get(f"{name}/dense", tensors[f"{name}/weight"]) for name in names}
        scored = {name: tensors[f"{name}/{self.slot}"] for name in names}
        self.masks.append({name: _two_of_four(weight) for name, weight in scored.items()})
        self.residuals.append([_residual(weight) for weight in dense.values()])


def _two_of_four(weight):
    ranks = weight.detach().abs().unflatten(1, (-1, 4)).argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return (ranks < 2).flatten(1)


def _residual(weight):
    sizes = weight.detach().double().square().unflatten(1, (-1, 4)).sort(-1).values
    return (sizes[..., :2].sum() / sizes.sum()).sqrt().item()


@pytest.mark.parametrize(("recipe", "slot"), [("sr-ste", "dense"), ("admm", "r")])
def test_times_in_the_mask_and_residuals_are_those_of_an_independent_count(recipe, slot, tmp_path):
    ours = NxMCallback(NxMConfig(recipe, "2:4", **RECIPES[recipe]))
    witness = Witness(ours, slot)
    _trainer(tmp_path, kind=Trainer, callbacks=(witness, AnalysisCallback(), ours)).train()
    words, (run,) = _analysis(tmp_path), read_runs([tmp_path])
    assert [record["step"] for record in words["records"]] == [0, 2, 4, 6, 8, 10, 12]
    found = in_mask_counts(run)
    for name, layer in words["layers"].items():
        expected = sum(masks[name].flatten()[layer["index"]].int() for masks in witness.masks)
        assert found[name] == expected.tolist()
    for record, residuals in zip(words["records"], witness.residuals, strict=True):
        assert record["residual"] == pytest.approx(residuals, rel=1e-5)
    assert sum(weights for _, weights, _, _ in magnitude_by_count(run)) == 12 * FOLLOWED_WEIGHTS


def test_first_and_last_values_are_the_weights_and_the_excerpt_is_the_mask(tmp_path):
    model, folder = make_bert(), _run(tmp_path)
    words = _analysis(folder)
    for name, layer in words["layers"].items():
        weight = model.get_submodule(name).weight
        assert layer["first"] == weight.flatten()[layer["index"]].tolist()
        assert len(set(layer["index"])) == len(layer["index"]) == FOLLOWED_WEIGHTS
        shipped = type(model).from_pretrained(folder).get_submodule(name).weight.flatten()
        kept = decode_in_mask(words["records"][-1]["in_mask"][list(words["layers"]).index(name)], FOLLOWED_WEIGHTS)
        followed = shipped[layer["index"]].tolist()
        assert [value if is_kept else 0.0 for value, is_kept in zip(layer["last"], kept, strict=True)] == followed
        if name == words["excerpt"]["layer"]:
            rows = ["".join("01"[bit] for bit in row) for row in (shipped.view(weight.shape) != 0).tolist()]
            assert words["excerpt"]["rows"] == rows


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_weight_is_in_one_histogram_once(recipe, made):
    words = _analysis(made[recipe])
    total = sum(a * b for a, b in (layer["shape"] for layer in words["layers"].values()))
    assert sum(words["magnitudes"]["kept"]) == sum(words["magnitudes"]["pruned"]) == total / 2


def test_flips_of_layers_add_up_to_the_flip_rate_of_the_log(made):
    words = _analysis(made["sr-ste"])
    sizes = [a * b for a, b in (layer["shape"] for layer in words["layers"].values())]
    logged = {record["step"]: record["nxm/flip_rate"] for record in _log(made["sr-ste"]) if "loss" in record}
    assert any(logged.values())
    for record in words["records"][1:]:
        flips = sum(size * share for size, share in zip(sizes, record["flips"], strict=True)) / sum(sizes)
        assert flips == pytest.approx(logged[record["step"]], rel=1e-9)


@pytest.mark.parametrize("kind", [NxMTrainer, Trainer])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_training_is_bit_for_bit_what_it_is_without_the_callback(kind, recipe, tmp_path):
    outcomes = []
    for number, mine in enumerate(([], [AnalysisCallback])):
        ours = [NxMCallback(NxMConfig(recipe, "2:4", **RECIPES[recipe]))] if kind is Trainer else []
        trainer = _trainer(tmp_path / str(number), recipe, callbacks=[*mine, *ours], kind=kind)
        trainer.train()
        chance = torch.rand(3).tolist(), random.random(), numpy.random.rand()
        log = [{k: v for k, v in r.items() if not k.endswith(("time", "second"))} for r in trainer.state.log_history]
        outcomes.append((trainer.model, chance, log))
    assert (tmp_path / "1" / ANALYSIS_FILE).is_file() and not (tmp_path / "0" / ANALYSIS_FILE).exists()
    assert_equal_weights(outcomes[0][0], outcomes[1][0])
    assert outcomes[0][1:] == outcomes[1][1:]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_resumed_training_leaves_the_file_of_an_unbroken_one(recipe, made, tmp_path):
    _run(tmp_path, recipe)
    shutil.rmtree(tmp_path / "checkpoint-12")
    _trainer(tmp_path, recipe).train(resume_from_checkpoint=True)
    assert _analysis(tmp_path) == _analysis(made[recipe])


def test_a_torn_file_is_begun_anew_by_a_resumed_training(tmp_path, caplog):
    _run(tmp_path)
    (tmp_path / ANALYSIS_FILE).write_text('{"records": [')
    _trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert "is torn" in caplog.text
    assert [record["step"] for record in _analysis(tmp_path)["records"]] == [6, 8, 10, 12]


def test_a_new_training_in_the_same_directory_begins_a_new_file(tmp_path, made):
    for _ in range(2):
        _run(tmp_path)
    assert _analysis(tmp_path) == _analysis(made["sr-ste"])


def test_the_number_of_records_is_bounded_and_they_stay_evenly_spaced(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "MAX_RECORDS", 5)
    _run(tmp_path, logging_steps=1)
    assert [record["step"] for record in _analysis(tmp_path)["records"]] == [0, 4, 8, 12]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_weights_that_are_not_finite_are_passed_over(value):
    model, engine = trained("admm", steps=3, total=12)
    words = recording.new_recording(engine, 0)
    recording.add_record(words, engine, 3)
    before = json.dumps(words, allow_nan=False)
    model.linears[1].weight.data[0, 0] = value
    recording.add_record(words, engine, 4)
    assert json.dumps(words, allow_nan=False) == before


def test_the_last_step_is_recorded_even_if_it_is_not_logged(tmp_path):
    _run(tmp_path, logging_steps=5)
    assert [record["step"] for record in _analysis(tmp_path)["records"]] == [0, 5, 10, 12]


@pytest.mark.parametrize("kind", [NxMTrainer, Trainer])
def test_a_training_without_sparse_layers_is_told_that_nothing_is_written(kind, tmp_path, caplog):
    _trainer(tmp_path, "dense", kind=kind).train()
    assert "AnalysisCallback writes nothing" in caplog.text and not (tmp_path / ANALYSIS_FILE).exists()


class Walker(TrainerCallback):
    """Keeps every weight at every step."""

    def __init__(self):
        self.weights = []

    def on_step_begin(self, args, state, control, model, **kwargs):
        self.weights.append({name: p.detach().clone() for name, p in model.named_parameters()})


def test_the_learning_correlation_is_that_of_the_weights_themselves(tmp_path):
    walker = Walker()
    _run(tmp_path, "admm", callbacks=(AnalysisCallback, walker), logging_steps=1, max_steps=14, eval_strategy="no")
    (run,) = read_runs([tmp_path])
    layers = run.analysis["layers"]
    places = [(f"{name}.weight", i) for name, layer in layers.items() for i in layer["index"][:TRACED_WEIGHTS]]
    seen = [[weights[name].flatten()[i].item() for name, i in places] for weights in walker.weights]
    ways, found = (torch.tensor(x, dtype=torch.float64) for x in (seen, snapshots(run)))
    assert len(found) == 15 and torch.allclose(found[:14], ways - ways[0], atol=1e-9, rtol=1e-5)
    (chart,) = (chart for chart in charts([run]) if chart.title == "Learning correlation")
    lines = {line.name: line for line in chart.lines}
    texts = zip(run.recorded("in_mask")[-1][1], layers.values(), strict=True)
    kept = [bit for text, layer in texts for bit in decode_in_mask(text, len(layer["index"]))[:TRACED_WEIGHTS]]
    assert list(lines) == ["kept", "pruned", "random walk"] and 0 < sum(kept) < len(kept) == len(places)
    for name, chosen in (("kept", True), ("pruned", False)):
        deltas = [_first_crossing(found[:, i].numpy()) for i, bit in enumerate(kept) if bit == chosen]
        for x, share in zip(lines[name].xs, lines[name].ys, strict=True):
            assert share == pytest.approx(sum(100 * delta <= x for delta in deltas) / len(deltas), abs=0.02)
        assert f"{name} {sorted(deltas)[round(0.5 * (len(deltas) - 1))]:.3f}" in chart.note
    null = lines["random walk"].ys
    assert null[-1] == 1 and null[0] < 0.05 and list(null) == sorted(null)
    assert f"{len(kept)} weights at 15 recorded steps" in chart.note and "random walk 0." in chart.note


def _first_crossing(series):
    """The first lag at which a series does not correlate with itself, by a line, over K - 1: numpy's correlation."""
    before, count = 1.0, len(series)
    for lag in range(1, count - 8 + 1):
        now = numpy.corrcoef(series[:-lag], series[lag:])[0, 1]
        if now <= 0:
            return (lag - 1 + before / (before - now)) / (count - 1)
        before = now
    return 1.0


def test_too_few_looks_have_no_learning_correlation_and_uneven_ones_are_left_out(made, runs):
    (run,) = read_runs([made["admm"]])
    assert "Learning correlation" not in {chart.title for chart in charts([run])}
    words = _analysis(runs["admm"])
    words["records"] = [{**words["records"][0], "step": step} for step in (0, 1, 5, 10, 15, 20, 23)]
    (runs["admm"] / ANALYSIS_FILE).write_text(json.dumps(words))
    assert len(snapshots(read_runs([runs["admm"]])[0])) == 5
    for record in words["records"]:
        record.pop("way")  # an older version wrote none
    (runs["admm"] / ANALYSIS_FILE).write_text(json.dumps(words))
    assert snapshots(read_runs([runs["admm"]])[0]) == []


# -- the page ----------------------------------------------------------------------------------------------------------


class Reader(HTMLParser):
    """Reads a page strictly: every tag is closed in its order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.found, self.tables = [], [], {}
        self.caption, self.rows = "", None
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.rows = []
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "table":
            self.tables.setdefault(self.caption, self.rows)

    def handle_data(self, data):
        if self.open and self.open[-1] in ("figcaption", "h2"):
            self.caption = data
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


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
        expected = [(record["step"], record[key]) for record in _log(folder) if key in record]
        assert [(int(row[0]), float(row[column])) for row in rows] == expected


def test_the_summary_shows_the_last_of_each_run_side_by_side(made):
    head, *rows = Reader(training_page(read_runs(list(made.values())))).tables["Summary"]
    table = {row[0]: row[1:] for row in rows}
    assert head[1:] == table["recipe"] == list(made)
    assert table["verified"] == ["ok"] * 3 and table["density of the final model"][:2] == ["0.5000"] * 2
    losses = [[record["loss"] for record in _log(folder) if "loss" in record][-1] for folder in made.values()]
    assert table["last training loss"] == [f"{loss:.4g}" for loss in losses]


COSTS = {"admm": (1.0, 1.0), "sr-ste": (5 / 6, 5 / 6), "rigl": (5 / 6, 5 / 6)}


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_a_training_has_cost_is_what_its_recipe_costs_before(recipe, made, capsys):
    (run,) = read_runs([made[recipe]])
    found = cost(run, tokens=8)
    before = analysis.training_flops(make_bert(), NxMConfig(recipe, "2:4", **RECIPES[recipe]), 12, tokens=8)
    assert str(found).startswith(str(before)) and found.flops == before
    assert before.ratio == pytest.approx(COSTS[recipe][0])  # of three products Y alone is sparse
    assert found.counted == run.state["total_flos"] > 0
    assert found.spent == pytest.approx(found.counted * before.overall)
    assert main(["flops", str(made[recipe]), "--tokens", "8"]) == 0
    assert capsys.readouterr().out == f"{found}\n"
    assert f"{cost(run).flops.overall:.4g}</td>" in training_page([run])


def test_of_a_training_that_ended_early_only_what_was_done_is_counted(runs):
    folder = runs["sr-ste"]
    for name in ("trainer_state.json", "checkpoint-12/trainer_state.json"):
        words = json.loads((folder / name).read_text()) if (folder / name).is_file() else None
        if words:
            (folder / name).write_text(json.dumps({**words, "max_steps": 48}))
    words = json.loads((folder / "nxm_config.json").read_text())
    (folder / "nxm_config.json").write_text(json.dumps({**words, "warmup": 0.125}))
    found = cost(*read_runs([folder]))
    assert (found.steps, found.planned) == (12, 48) and "12 of 48 steps were done." in str(found)
    assert found.flops.ratio == pytest.approx((6 * 1 + 6 * 5 / 6) / 12)  # 6 of the 12 were warm-up
    total = analysis.training_flops(make_bert(), NxMConfig("sr-ste", "2:4", warmup=0.125), 48)
    assert found.flops.total * 4 == total.total and found.flops.ratio > total.ratio


UNKNOWN = {
    "dense": (lambda folder: [path.unlink() for path in folder.rglob("nxm_config.json")], "no record of a recipe"),
    "custom": (lambda folder: _edit(folder / "nxm_config.json", recipe="custom"), "a method of its own"),
    "modelless": (lambda folder: [path.unlink() for path in folder.rglob("model.safetensors")], "holds no model"),
    "endless": (lambda folder: _edit(folder / "checkpoint-12/trainer_state.json", max_steps=0), "12 of 0 steps"),
}  # fmt: skip


def _edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_cost_that_is_not_known_is_one_sentence(name, runs, capsys):
    change, why = UNKNOWN[name]
    (runs["admm"] / "trainer_state.json").unlink(missing_ok=True)
    change(runs["admm"])
    assert main(["flops", str(runs["admm"])]) == 2
    assert why in capsys.readouterr().err
    assert why in training_page(read_runs([runs["admm"]]))


def test_a_run_without_samples_is_drawn_and_says_how_to_get_them(runs):
    (runs["admm"] / ANALYSIS_FILE).unlink()
    text = training_page(read_runs([runs["admm"]]))
    assert [a["id"] for tag, a in Reader(text).found if tag == "section"] == SECTIONS
    assert "Add AnalysisCallback()" in text


def test_a_dense_run_is_drawn_beside_a_sparse_one(runs, tmp_path):
    _trainer(tmp_path / "plain", "dense", callbacks=()).train()
    found = read_runs([tmp_path / "plain", runs["admm"]])
    assert Reader(training_page(found)).tables["Summary"][1] == ["recipe", "dense", "admm"]


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
    text = training_page(read_runs([folder]))
    Reader(text)
    assert "<script" not in text and html.escape("<script>alert(1)//") in text and "&lt;b&gt;&amp;run" in text


def test_a_model_that_breaks_its_pattern_is_shown_as_such(runs):
    from safetensors.torch import load_file, save_file

    path = runs["admm"] / "model.safetensors"
    weights = load_file(path)
    weights["bert.encoder.layer.0.attention.self.query.weight"].fill_(1.0)
    save_file(weights, path, metadata={"format": "pt"})
    text = training_page(read_runs([runs["admm"]]))
    assert "breaks 2:4 in" in text and 'class="bad"' in text


def test_ticks_are_round_few_and_inside():
    for low, high in ((0, 1), (0.99993, 1.0), (-3e-7, 4e-7), (1e5, 3e6), (5, 5), (0, 0)):
        axis = fit_axis([low, high], 0, 100)
        assert 1 <= len(axis.ticks) <= 7 and all(-0.1 <= axis.position(tick) <= 100.1 for tick in axis.ticks)
    axis = fit_axis([1e-4, 0.5], 100, 0, logarithmic=True)
    assert [round(tick, 9) for tick in axis.ticks] == [1e-4, 1e-3, 1e-2, 1e-1]
    assert axis.position(1e-2) == pytest.approx((axis.position(1e-3) + axis.position(1e-1)) / 2, abs=0.02)


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_writes_the_page_into_the_first_directory(runs, capsys):
    assert main(["report", str(runs["sr-ste"]), str(runs["admm"])]) == 0
    assert str(runs["sr-ste"] / "report.html") in capsys.readouterr().out
    assert not (runs["admm"] / "report.html").exists()
    Reader((runs["sr-ste"] / "report.html").read_text(encoding="utf-8"))


def test_pictures_are_drawn_where_matplotlib_is_installed(runs):
    pytest.importorskip("matplotlib")
    found = read_runs([runs["admm"], runs["rigl"]])
    _, *pictures = write_report([runs["admm"], runs["rigl"]])
    assert len(set(pictures)) == len(charts(found)) and all(p.read_bytes()[:4] == b"\x89PNG" for p in pictures)


def test_without_matplotlib_there_is_the_same_page_and_no_picture(runs, monkeypatch):
    real = builtins.__import__

    def lacking(name, *rest):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest)

    before = training_page(read_runs([runs["admm"]]))
    monkeypatch.setattr(builtins, "__import__", lacking)
    assert write_report([runs["admm"]]) == [runs["admm"] / "report.html"]
    assert (runs["admm"] / "report.html").read_text(encoding="utf-8") == before


def _each_state(change):
    def spoil(folder):
        for path in folder.glob("checkpoint-*/trainer_state.json"):
            change(path)

    return spoil


def _plain(folder):
    for path in [*folder.rglob("nxm_*"), *folder.rglob("config.json")]:
        path.unlink()
    for path in folder.glob("checkpoint-*/trainer_state.json"):
        words = json.loads(path.read_text())
        log = [{k: v for k, v in r.items() if not k.startswith("nxm/")} for r in words["log_history"]]
        path.write_text(json.dumps({**words, "log_history": log}))


def _without(key):
    def spoil(folder):
        words = _analysis(folder)
        del words[key]
        (folder / ANALYSIS_FILE).write_text(json.dumps(words))

    return spoil


SPOILT = {
    "nothing of a Trainer": (_each_state(lambda path: path.unlink()), "give the output_dir of a Trainer"),
    "nothing of ours": (_plain, "is of a training without nxm_hf"),
    "a torn log": (_each_state(lambda path: path.write_text('{"log_history": [')), "trainer_state.json is torn"),
    "a log that is a list": (_each_state(lambda path: path.write_text("[]")), "it must be an object"),
    "no log": (_each_state(lambda path: path.write_text("{}")), "has no log_history"),
    "an empty log": (_each_state(lambda path: path.write_text('{"log_history": []}')), "is empty"),
    "torn samples": (lambda folder: (folder / ANALYSIS_FILE).write_text('{"a"'), f"{ANALYSIS_FILE} is torn"),
    "samples of another format": (lambda folder: (folder / ANALYSIS_FILE).write_text("{}"), "has format None"),
    "samples with a part missing": (_without("excerpt"), "lacks excerpt"),
    "a torn config": (lambda folder: (folder / "nxm_config.json").write_text("{"), "nxm_config.json is torn"),
}


@pytest.mark.parametrize("fault", SPOILT)
def test_what_cannot_be_read_is_one_line_that_says_why(fault, runs, capsys):
    spoil, useful = SPOILT[fault]
    spoil(runs["admm"])
    assert main(["report", str(runs["admm"])]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and useful in err and not (runs["admm"] / "report.html").exists()


def test_one_directory_named_twice_and_none_are_errors(runs, capsys):
    assert main(["report", str(runs["admm"]), f"{runs['admm']}/"]) == 2
    assert "named twice" in capsys.readouterr().err
    assert main(["report"]) == 2
    assert main(["report", str(runs["admm"] / "nowhere")]) == 2
    assert "does not exist" in capsys.readouterr().err
