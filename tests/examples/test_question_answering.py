"""The example of question answering: its windows, the best span of them all, and the metric of SQuAD."""

import json
import random
from itertools import pairwise

import numpy as np
import pytest

from tests.support.example_scripts import question_answering as qa

SCORES = [
    ("The Beatles!", ["beatles"], 1, 1),
    ("a  cat", ["the cat.", "dog"], 1, 1),
    ("Saint-Denis", ["saint denis"], 0, 0),  # a hyphen goes without a space, as in the script of SQuAD
    ("the old red house", ["red house", "old"], 0, 4 / 5),
    ("house house", ["house"], 0, 2 / 3),
    ("north", ["south", "west"], 0, 0),
    ("red house", ["house red"], 0, 1),
    ("", [], 1, 1),
    ("north", [], 0, 0),
    ("", ["north"], 0, 0),
    ("theatre", ["atre"], 0, 0),
]


@pytest.mark.parametrize("answer, references, exact, f1", SCORES)
def test_scores_are_those_of_the_script_of_squad(answer, references, exact, f1):
    assert qa.score(answer, references) == {"exact_match": exact, "f1": pytest.approx(f1)}


@pytest.fixture(scope="module")
def tokenizer():
    return qa.make_tokenizer()


def settings(length, stride, longest=30):
    return qa.Script(max_seq_length=length, doc_stride=stride, max_answer_length=longest)


@pytest.mark.parametrize("length, stride", [(384, 128), (12, 4), (12, 0), (9, 128), (5, 0)])
def test_windows_cover_each_text_and_hold_each_answer_where_it_is_whole(tokenizer, length, stride):
    rows = qa.make_rows(24, 3)
    windows = qa.cut_into_windows(rows, tokenizer, settings(length, stride))
    covered = [set() for _ in rows]
    found = set()
    for window in windows:
        row, places = rows[window["row"]], window["places"]
        assert len(window["input_ids"]) == len(places) <= length
        inside = [place for place in places if place[1] > 0]
        covered[window["row"]] |= {letter for first, last in inside for letter in range(first, last)}
        start, text = row["answers"]["answer_start"][0], row["answers"]["text"][0]
        is_whole = inside[0][0] <= start and start + len(text) <= inside[-1][1]
        first, last = window["start_positions"], window["end_positions"]
        assert ((first, last) != (0, 0)) == is_whole
        if is_whole:
            assert row["context"][places[first][0] : places[last][1]] == text
            found.add(window["row"])
    assert found == set(range(24))  # each answer is one word, and a word is in one window at least
    for row, letters in zip(rows, covered, strict=True):
        assert letters == {place for place, letter in enumerate(row["context"]) if letter != " "}


def test_neighbouring_windows_share_the_tokens_of_the_stride(tokenizer):
    for stride in (0, 1, 2):
        windows = qa.cut_into_windows(qa.make_rows(1, 3), tokenizer, settings(8, stride))
        inside = [{tuple(place) for place in window["places"] if place[1] > 0} for window in windows]
        assert len(inside) > 2
        assert all(len(one & two) == stride for one, two in pairwise(inside))


def test_a_question_that_leaves_no_room_for_the_text_is_refused(tokenizer):
    rows = qa.make_rows(2, 3).map(lambda row: {"question": "not word1 word2"})
    with pytest.raises(ValueError, match=r"question of 3 tokens leaves no room in 9; raise --max_seq_length"):
        qa.cut_into_windows(rows, tokenizer, settings(9, 3))


def test_an_answer_that_two_windows_cut_is_at_the_first_token_of_both(tokenizer):
    row = {"question": "not", "context": "word1 word2 word3 word4 word5 word6", "id": "0"}
    row["answers"] = {"text": ["word3 word4 word5 word6"], "answer_start": [12]}
    windows = qa.cut_into_windows(qa.Dataset.from_list([row]), tokenizer, settings(7, 0))
    assert len(windows) > 1 and set(windows["start_positions"]) == set(windows["end_positions"]) == {0}


def brute_force(logits, windows, rows, longest):
    """Return the best span of every row by a loop over all."""
    best = [(-np.inf, "")] * len(rows)
    for start, end, window in zip(*logits, windows, strict=True):
        for i, first in enumerate(window["places"]):
            for j, last in enumerate(window["places"][i : i + longest], i):
                if first[1] > 0 and last[1] > 0:
                    text = rows[window["row"]]["context"][first[0] : last[1]]
                    best[window["row"]] = max(best[window["row"]], (start[i] + end[j], text))
    return [text for _, text in best]


@pytest.mark.parametrize("longest", [1, 2, 30])
def test_the_best_span_is_that_of_a_loop_over_all_windows(tokenizer, longest):
    rows, draw = qa.make_rows(12, 4), np.random.default_rng(longest)
    windows = qa.cut_into_windows(rows, tokenizer, settings(10, 3))
    logits = tuple(draw.normal(size=(len(windows), 13)).astype(np.float32) for _ in range(2))  # padded, as by a Trainer
    logits[0][:, 0] = logits[1][:, 0] = 50  # the first token says "no answer", which is none of these texts
    found = qa.best_answers(logits, windows, rows, longest)
    assert found == brute_force([side.astype(float) for side in logits], windows, rows, longest)
    assert all(len(answer.split()) <= longest for answer in found)


def test_an_empty_answer_wins_where_questions_may_have_none(tokenizer):
    rows = qa.make_rows(3, 4).to_list()
    rows[2]["answers"] = {"text": [], "answer_start": []}
    rows = qa.Dataset.from_list(rows)
    windows = qa.cut_into_windows(rows, tokenizer, settings(10, 3))
    logits = np.zeros((2, len(windows), 10), np.float32)
    for window, row in enumerate(windows["row"]):
        logits[:, window, 0] = (-1, 1, 1)[row]
    last = max(window for window, row in enumerate(windows["row"]) if row == 1)
    logits[:, last, 0] = -1  # one window that holds an answer is enough
    answers = qa.best_answers(tuple(logits), windows, rows, 30)
    assert answers[0] and answers[1] and answers[2] == ""


def test_the_order_of_windows_cannot_be_lost():
    with pytest.raises(ValueError, match="leave --train_sampling_strategy out"):
        qa.read_options(["--train_sampling_strategy", "group_by_length"])


@pytest.mark.slow
def test_a_model_learns_from_windows_and_its_answers_are_written(tmp_path, capsys):
    short = ["--use_cpu", "--disable_tqdm", "True", "--report_to", "none", "--save_strategy", "no"]
    learn = ["--max_steps", "96", "--per_device_train_batch_size", "32", "--learning_rate", "3e-3"]
    windows = ["--max_seq_length", "9", "--doc_stride", "2", "--hold_out", "0.1"]
    qa.main([*short, *learn, *windows, "--output_dir", str(tmp_path)])
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    metrics = json.loads((tmp_path / "all_results.json").read_text())
    assert len(lines) == 205  # a tenth of 2048 rows, one answer each for all its windows
    for name in ("exact_match", "f1"):
        assert metrics[f"eval_{name}"] == pytest.approx(np.mean([line[name] for line in lines]))
        assert metrics[f"eval_{name}"] > 0.8
    truth = {row["id"]: row["answers"]["text"] for row in qa.make_rows(2048, 1)}
    sample = random.Random(0).sample(lines, 20)
    assert all(line["exact_match"] == qa.score(line["answer"], truth[line["id"]])["exact_match"] for line in sample)
