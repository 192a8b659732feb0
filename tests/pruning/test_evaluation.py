"""Evaluation: what labelled rows say of a model before and after it is pruned, and which rows are refused."""

import csv
import json

import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from transformers import GPT2Config, GPT2ForSequenceClassification

from nxm_hf import prune
from nxm_hf.cli.main import main
from nxm_hf.pruning.evaluation import Evaluation, pearson, ranks
from nxm_hf.pruning.result import RESULT_FILE
from tests.support.models import assert_equal_weights, make_bert, make_model, make_texts, make_tokenizer

TEXTS = make_texts(50)
NAMES = {0: "no", 1: "yes"}


def labelled(count: int = 40, labels=lambda n: n % 2) -> list[dict]:
    """Rows of two texts, a number and a label."""
    return [{"idx": n, "one": TEXTS[n], "two": TEXTS[-n], "label": labels(n)} for n in range(count)]


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


@torch.no_grad()
def logits(model, rows) -> torch.Tensor:
    """Row by row, without padding."""
    tokenizer = make_tokenizer()
    model.eval()
    return torch.cat([model(**tokenizer(row["one"], row["two"], return_tensors="pt")).logits for row in rows])


def separable(rows) -> torch.nn.Module:
    """A model that is right more often than not: its head's bias is set between the answers to these rows."""
    model = make_bert(id2label=NAMES, label2id={name: n for n, name in NAMES.items()})
    found = logits(model, rows)
    with torch.no_grad():
        model.classifier.bias[1] -= (found[:, 1] - found[:, 0]).median()
    return model


# -- metrics -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spelled", [int, str, float, NAMES.get])
def test_accuracy_is_the_share_of_rows_that_are_right_whatever_way_labels_are_spelled(spelled):
    rows = labelled()
    model = separable(rows)
    right = logits(model, rows).argmax(-1).tolist()
    made = [{**row, "label": spelled(right[n] if n % 4 else 1 - right[n])} for n, row in enumerate(rows)]
    assert len(set(right)) == 2 and Evaluation.from_rows(made, model, make_tokenizer())(model) == {"accuracy": 0.75}


@pytest.mark.parametrize("one_column", [False, True])
def test_scores_are_correlated_as_scipy_does_it(one_column):
    rows, model = labelled(labels=lambda n: round(n % 7 / 2, 1)), make_bert(num_labels=1, problem_type=None)
    if one_column:
        rows = [{"text": row["one"], "label": str(row["label"])} for row in rows]
    found = Evaluation.from_rows(rows, model, make_tokenizer())(model)
    tokenizer = make_tokenizer()
    with torch.no_grad():
        row_texts = [[v for k, v in row.items() if k in ("one", "two", "text")] for row in rows]
        answers = [model.eval()(**tokenizer(*texts, return_tensors="pt")).logits.item() for texts in row_texts]
    given = [float(row["label"]) for row in rows]
    assert found["pearson"] == pytest.approx(pearsonr(answers, given).statistic, abs=1e-5)
    assert found["spearman"] == pytest.approx(spearmanr(answers, given).statistic, abs=1e-5)


def test_ranks_share_ties_and_a_constant_correlates_with_nothing():
    values = torch.tensor([3.0, 1.0, 3.0, 3.0, -2.0, 1.0])
    assert pearson(ranks(values), torch.arange(6.0).double()) == pytest.approx(spearmanr(values, range(6)).statistic)
    assert pearson(torch.ones(4), torch.arange(4.0)) is None


def test_a_tokenizer_that_cannot_pad_reads_rows_one_at_a_time():
    kwargs = dict(n_embd=32, n_layer=2, n_head=2, vocab_size=50, n_positions=32, num_labels=3)
    torch.manual_seed(0)
    model = GPT2ForSequenceClassification(GPT2Config(**kwargs)).eval()
    rows, tokenizer = labelled(20), make_tokenizer(special=False)
    with torch.no_grad():
        right = [model(**tokenizer(r["one"], r["two"], return_tensors="pt")).logits.argmax().item() for r in rows]
    rows = [{**row, "label": label} for row, label in zip(rows, right, strict=True)]
    assert Evaluation.from_rows(rows, model, tokenizer)(model) == {"accuracy": 1.0}


# -- before and after --------------------------------------------------------------------------------------------------


def test_prune_judges_before_and_after_and_prunes_as_without(tmp_path):
    rows = labelled()
    model, plain = separable(rows), separable(rows)
    rows = [{**row, "label": n} for row, n in zip(rows, logits(model, rows).argmax(-1).tolist(), strict=True)]
    model.train()
    outcome = prune(model, "1:4", "wanda", TEXTS, make_tokenizer(), evaluation=rows)
    prune(plain, "1:4", "wanda", TEXTS, make_tokenizer())
    assert_equal_weights(model, plain)
    assert model.training and all(module.training for module in model.modules())
    after = sum(int(a) == row["label"] for a, row in zip(logits(model, rows).argmax(-1), rows, strict=True)) / 40
    assert outcome.scores == {"accuracy": (1.0, after)} and 0 < after < 1
    assert f"accuracy 1.0000 -> {after:.4f} on 40 labelled rows" in str(outcome).splitlines()


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_the_commands_print_and_save_and_draw_it(kind, tmp_path, capsys):
    rows = labelled(20)
    separable(rows).save_pretrained(tmp_path / "dense")
    make_tokenizer().save_pretrained(tmp_path / "dense")
    path = tmp_path / f"rows.{kind}"
    write(path, rows)
    assert run("convert", tmp_path / "dense", tmp_path / "out", "--to", "4:8", "--eval", path) == 0
    saved = json.loads((tmp_path / "out" / RESULT_FILE).read_text())
    (before, after), text = saved["scores"]["accuracy"], capsys.readouterr().out
    assert before == Evaluation.from_rows(rows, separable(rows), make_tokenizer())(separable(rows))["accuracy"]
    line = f"{before:.4f} -> {after:.4f} on 20 labelled rows"
    assert f"accuracy {line}" in text and saved["rows"] == 20
    assert run("report", tmp_path / "out") == 0
    assert line.replace(">", "&gt;") in (tmp_path / "out" / "report.html").read_text()
    assert run("prune", tmp_path / "dense", tmp_path / "two", "--method", "magnitude", "--eval", path) == 0
    assert f"accuracy {before:.4f} -> " in capsys.readouterr().out


def write(path, rows) -> None:
    if path.suffix == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        arrow = pytest.importorskip("pyarrow")
        parquet.write_table(arrow.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


# -- what is refused, before anything changes --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rows, message",
    [
        ([], "There are no labelled rows"),
        (["text"], r"have no columns; give a \.parquet"),
        ([{"one": "w1"}], "have the columns one, of which one hold text; one or two of text and 'label'"),
        ([{"idx": 1, "label": 0}], "of which none hold text"),
        ([{"a": "w1", "b": "w2", "c": "w3", "label": 0}], "of which a, b, c hold text.*Rename or remove"),
        ([{"a": "w1", "label": 0}, {"a": None, "label": 0}], "Labelled row 2 has no text in a"),
        ([{"a": "w1", "label": 2}], "row 1 has the label 2; this model's are 0 to 1, or one of no, yes"),
        ([{"a": "w1", "label": -1}], "row 1 has the label -1"),
        ([{"a": "w1", "label": 0.5}], r"has the label 0\.5"),
        ([{"a": "w1", "label": "maybe"}], "has the label 'maybe'.*Correct the file"),
        ([{"a": "w1", "label": None}], "has the label None"),
        ([{"a": "w1", "label": [1]}], r"has the label \[1\]"),
    ],
)
def test_wrong_rows_are_an_error_that_says_what_is_wrong(rows, message):
    model, before = separable(labelled()), separable(labelled())
    with pytest.raises(ValueError, match=message):
        prune(model, evaluation=rows, tokenizer=make_tokenizer())
    assert_equal_weights(model, before)


def test_a_score_that_is_no_number_and_a_model_without_a_head_are_refused():
    rows = [{"a": "w1", "label": float("nan")}]
    with pytest.raises(ValueError, match="has the label nan; this model's are a number"):
        Evaluation.from_rows(rows, make_bert(num_labels=1, problem_type="regression"), make_tokenizer())
    with pytest.raises(ValueError, match=r"AlbertModel has no head.*ForSequenceClassification"):
        prune(make_model("albert"), evaluation=labelled(), tokenizer=make_tokenizer())
    for kind in ("multi_label_classification", "regression"):
        with pytest.raises(ValueError, match="several outputs for a row"):
            Evaluation.from_rows(labelled(), make_bert(problem_type=kind), make_tokenizer())
