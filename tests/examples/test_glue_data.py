"""glue_data.py: labels of rows, and which files somebody who copies run_glue.py takes along."""

import ast
import re
from pathlib import Path

import datasets
import numpy as np
import pytest

from tests.support.example_scripts import glue_data, run_glue

TASKS = glue_data.TASKS
FOLDER = Path(run_glue.__file__).parent


def test_run_glue_names_every_file_that_it_needs_beside_it():
    """The demo is imported only by `--task_name demo`."""
    tree = ast.parse((FOLDER / "run_glue.py").read_text())
    imported = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    needed = {path.name for path in FOLDER.glob("*.py") if path.stem in imported} | {Path(run_glue.METRIC).name}
    assert needed == set(re.findall(r"\w+\.py", ast.get_docstring(tree))) - {"run_glue.py"}


def test_labels_that_are_whole_numbers_keep_their_order():
    rows = datasets.Dataset.from_dict({"text": ["a"] * 3, "label": [2, 0, 1]})
    assert glue_data.label_names(rows) == ("0", "1", "2")


def test_a_label_is_its_name_or_its_number():
    task, scores = TASKS["mrpc"], TASKS["stsb"]
    said = ["not_equivalent", "equivalent", 0, 1, 1.0, np.int64(1)]
    assert [glue_data.label_number(label, task) for label in said] == [0, 1, 0, 1, 1, 1]
    numbered = glue_data.Task(("text",), ("1", "2"))
    assert [glue_data.label_number(label, numbered) for label in (1, 2, 2.0, "1")] == [0, 1, 1, 0]  # names go first
    assert glue_data.label_number(3, scores) == glue_data.label_number("3.0", scores) == 3.0


@pytest.mark.parametrize("label", ["entailment", 2, -1, 0.5, None, ""])
def test_a_label_of_another_task_is_an_error_that_lists_this_ones(label):
    with pytest.raises(ValueError, match=f"label {label!r}; this task's are not_equivalent, equivalent, or 0 to 1"):
        glue_data.label_number(label, TASKS["mrpc"])


@pytest.mark.parametrize("test_rows", ["text\nc\nd\n", "text,label\nc,\nd,\n"], ids=["no column", "an empty column"])
def test_rows_to_predict_need_no_labels(test_rows, tmp_path):
    (tmp_path / "train.csv").write_text("text,label\na,good\nb,bad\n")
    (tmp_path / "test.csv").write_text(test_rows)
    rows = glue_data.read_files({split: [str(tmp_path / f"{split}.csv")] for split in ("train", "test")})
    assert rows["train"]["label"] == ["good", "bad"] and rows["test"].column_names == ["text"]
    assert glue_data.task_of(glue_data.DataOptions(), rows) == glue_data.Task(("text",), ("bad", "good"))


def test_a_byte_order_mark_is_no_part_of_a_column(tmp_path):
    (tmp_path / "train.csv").write_text("label,text\n0,a\n1,b\n", encoding="utf-8-sig")
    rows = glue_data.read_files({"train": [str(tmp_path / "train.csv")]})
    assert rows["train"].column_names == ["label", "text"]


def test_minus_one_is_a_label_like_others(tmp_path):
    (tmp_path / "train.csv").write_text("label,text\n-1,a\n1,b\n")
    rows = glue_data.read_files({"train": [str(tmp_path / "train.csv")]})
    task = glue_data.task_of(glue_data.DataOptions(), rows)
    assert [glue_data.label_number(label, task) for label in rows["train"]["label"]] == [0, 1]


def test_whole_labels_with_a_point_are_scores_and_a_warning_says_so(caplog):
    for labels, warnings in (([0.0, 1.0], 1), ([0.0, 0.5], 0)):
        caplog.clear()
        assert glue_data.label_names(datasets.Dataset.from_dict({"label": labels})) == ()
        assert len(caplog.messages) == warnings and all("Write 1 for a class" in each for each in caplog.messages)
