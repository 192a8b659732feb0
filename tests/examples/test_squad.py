"""The example of question answering: its windows, the best span of them all, and the metric of SQuAD."""

from itertools import pairwise

import numpy as np
import pytest
from datasets import Dataset
from transformers import TrainingArguments

from nxm_hf.demo.task import make_tokenizer
from tests.support.example_scripts import made_data, squad

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
    assert squad.score(answer, references) == {"exact_match": exact, "f1": pytest.approx(f1)}


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.mark.parametrize("length, stride", [(384, 128), (12, 4), (12, 0), (9, 128), (5, 0)])
def test_windows_cover_each_text_and_hold_each_answer_where_it_is_whole(tokenizer, length, stride):
    rows = made_data.questions(24, 3)
    windows = squad.cut_into_windows(rows, tokenizer, length, stride)
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
        windows = squad.cut_into_windows(made_data.questions(1, 3), tokenizer, 8, stride)
        inside = [{tuple(place) for place in window["places"] if place[1] > 0} for window in windows]
        assert len(inside) > 2
        assert all(len(one & two) == stride for one, two in pairwise(inside))


def test_a_question_that_leaves_no_room_for_the_text_is_refused(tokenizer):
    rows = made_data.questions(2, 3).map(lambda row: {"question": "not word1 word2"})
    with pytest.raises(ValueError, match=r"question of 3 tokens leaves no room in 9; raise --max_seq_length"):
        squad.cut_into_windows(rows, tokenizer, 9, 3)


def test_an_answer_that_two_windows_cut_is_at_the_first_token_of_both(tokenizer):
    row = {"question": "not", "context": "word1 word2 word3 word4 word5 word6", "id": "0"}
    row["answers"] = {"text": ["word3 word4 word5 word6"], "answer_start": [12]}
    windows = squad.cut_into_windows(Dataset.from_list([row]), tokenizer, 7, 0)
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
    rows, draw = made_data.questions(12, 4), np.random.default_rng(longest)
    windows = squad.cut_into_windows(rows, tokenizer, 10, 3)
    logits = tuple(draw.normal(size=(len(windows), 13)).astype(np.float32) for _ in range(2))  # padded, as by a Trainer
    logits[0][:, 0] = logits[1][:, 0] = 50  # the first token says "no answer", which is none of these texts
    found = squad.best_answers(logits, windows, rows, longest)
    assert found == brute_force([side.astype(float) for side in logits], windows, rows, longest)
    assert all(len(answer.split()) <= longest for answer in found)


def test_an_empty_answer_wins_where_questions_may_have_none(tokenizer):
    rows = made_data.questions(3, 4).to_list()
    rows[2]["answers"] = {"text": [], "answer_start": []}
    rows = Dataset.from_list(rows)
    windows = squad.cut_into_windows(rows, tokenizer, 10, 3)
    logits = np.zeros((2, len(windows), 10), np.float32)
    for window, row in enumerate(windows["row"]):
        logits[:, window, 0] = (-1, 1, 1)[row]
    last = max(window for window, row in enumerate(windows["row"]) if row == 1)
    logits[:, last, 0] = -1  # one window that holds an answer is enough
    answers = squad.best_answers(tuple(logits), windows, rows, 30)
    assert answers[0] and answers[1] and answers[2] == ""


def test_the_order_of_windows_cannot_be_lost():
    squad.check_order(TrainingArguments("out"))
    with pytest.raises(ValueError, match="leave --train_sampling_strategy out"):
        squad.check_order(TrainingArguments("out", train_sampling_strategy="group_by_length"))
