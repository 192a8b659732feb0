"""The script of SQuAD in the comparison: rows that are held out, and the files that it writes."""

import json
import random

import numpy as np
import pytest

from benchmarks.glue.comparison import squad_script
from tests.support.example_scripts import made_data, squad


@pytest.mark.slow
def test_a_model_learns_from_windows_and_its_answers_are_written(tmp_path):
    made_data.write("question_answering", tmp_path / "made")
    names = ["--model_name_or_path", str(tmp_path / "made/model"), "--dataset_name", str(tmp_path / "made/rows")]
    short = ["--use_cpu", "--disable_tqdm", "True", "--report_to", "none", "--save_strategy", "no"]
    learn = ["--max_steps", "96", "--per_device_train_batch_size", "32", "--learning_rate", "3e-3"]
    windows = ["--max_seq_length", "9", "--doc_stride", "2", "--hold_out", "0.1"]
    squad_script.main([*names, *short, *learn, *windows, "--output_dir", str(tmp_path)])
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    metrics = json.loads((tmp_path / "all_results.json").read_text())
    assert len(lines) == 205  # a tenth of 2048 rows, one answer each for all its windows
    for name in ("exact_match", "f1"):
        assert metrics[f"eval_{name}"] == pytest.approx(np.mean([line[name] for line in lines]))
        assert metrics[f"eval_{name}"] > 0.8
    truth = {row["id"]: row["answers"]["text"] for row in made_data.questions(2048, 1)}
    sample = random.Random(0).sample(lines, 20)
    assert all(line["exact_match"] == squad.score(line["answer"], truth[line["id"]])["exact_match"] for line in sample)


def test_the_order_of_windows_cannot_be_lost():
    with pytest.raises(ValueError, match="leave --train_sampling_strategy out"):
        squad_script.read_options(["--train_sampling_strategy", "group_by_length"])
