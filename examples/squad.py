"""Long texts for question answering: windows that overlap, the best answer of them all, and the scores of SQuAD.

`question_answering.py` uses it. transformers 5 has no functions for this.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, TrainingArguments

NO_PLACE = (-1, -1)  # of a token that is not of the text


def check_order(args: TrainingArguments) -> None:
    """Raise an error if a training would change the order of the windows, by which answers are found."""
    if args.train_sampling_strategy == "group_by_length":
        raise ValueError("Windows that are grouped by length lose their order; leave --train_sampling_strategy out.")


def cut_into_windows(rows: Dataset, tokenizer: PreTrainedTokenizerBase, length: int, stride: int) -> Dataset:
    """Return windows of tokens: the row of each, where its tokens stand in the text, and where the answer is.

    Args:
        rows: Rows in the form of SQuAD.
        tokenizer: The tokenizer of the model.
        length: Tokens of a window, with those of the question.
        stride: Tokens that two windows of a text share, a third of the window at most.
    """
    length = min(length, tokenizer.model_max_length)
    stride, special = min(stride, length // 3), tokenizer.num_special_tokens_to_add(pair=True)
    options = {"max_length": length, "stride": stride, "truncation": "only_second"}

    def cut(batch: dict[str, Any], numbers: list[int]) -> dict[str, Any]:
        questions, more = [text.strip() for text in batch["question"]], {"return_overflowing_tokens": True}
        longest = max(map(len, tokenizer(questions, add_special_tokens=False)["input_ids"]))
        if longest + special + stride >= length:
            raise ValueError(f"A question of {longest} tokens leaves no room in {length}; raise --max_seq_length.")
        found = tokenizer(questions, batch["context"], return_offsets_mapping=True, **more, **options)
        owners, offsets = found.pop("overflow_to_sample_mapping"), found.pop("offset_mapping")
        places, spans = [], []
        for window, owner in enumerate(owners):
            sides = zip(found.sequence_ids(window), offsets[window], strict=True)
            places.append([place if side == 1 else NO_PLACE for side, place in sides])
            spans.append(find_span(places[-1], batch["answers"][owner]))
        starts, ends = map(list, zip(*spans, strict=True))
        row = [numbers[owner] for owner in owners]
        return {**found, "row": row, "places": places, "start_positions": starts, "end_positions": ends}

    return rows.map(cut, batched=True, with_indices=True, remove_columns=rows.column_names)


def find_span(places: Sequence[Sequence[int]], answers: dict[str, Any]) -> tuple[int, int]:
    """Return the first and the last token of an answer; the first of the window twice if it is not wholly inside."""
    inside = [token for token, place in enumerate(places) if place[1] > 0]
    if not answers["text"] or not inside:
        return 0, 0
    start = answers["answer_start"][0]
    end = start + len(answers["text"][0])
    tokens = [token for token in inside if places[token][0] < end and places[token][1] > start]
    if not tokens or start < places[inside[0]][0] or end > places[inside[-1]][1]:
        return 0, 0
    return tokens[0], tokens[-1]


def best_answers(logits: Any, windows: Dataset, rows: Dataset, longest: int) -> list[str]:
    """Return the best span of all windows of each row; an empty one can win if some questions have no answer."""
    best, nothing = [(-np.inf, "")] * len(rows), np.full(len(rows), np.inf)
    has_unanswerable = any(not answers["text"] for answers in rows["answers"])
    contexts = rows["context"][:]
    for start, end, row, places in zip(*logits, windows["row"], windows["places"], strict=True):
        nothing[row] = min(nothing[row], start[0] + end[0])
        inside = [token for token, place in enumerate(places) if place[1] > 0]
        length = np.subtract.outer(np.arange(len(inside)), np.arange(len(inside))).T  # from a start to an end
        scores = np.add.outer(start[inside], end[inside])
        scores = np.where((length >= 0) & (length < longest), scores, -np.inf)
        first, last = np.unravel_index(scores.argmax(), scores.shape)
        text = contexts[row][places[inside[first]][0] : places[inside[last]][1]]
        best[row] = max(best[row], (float(scores[first, last]), text))
    return [
        "" if has_unanswerable and null > score else text for (score, text), null in zip(best, nothing, strict=True)
    ]


def normalize(answer: str) -> list[str]:
    """Return the words of an answer, in small letters, without punctuation and articles."""
    plain = "".join(letter for letter in answer.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def f1(answer: list[str], reference: list[str]) -> float:
    """Return F1 of the words of two answers; of an empty one it is 1 if the other is empty too."""
    if not answer or not reference:
        return float(answer == reference)
    return 2 * (Counter(answer) & Counter(reference)).total() / (len(answer) + len(reference))


def score(answer: str, references: Sequence[str]) -> dict[str, float]:
    """Return exact match and F1 with the nearest of the references; none means that there is no answer."""
    ours, theirs = normalize(answer), [normalize(reference) for reference in references or [""]]
    return {"exact_match": float(ours in theirs), "f1": max(f1(ours, reference) for reference in theirs)}


def score_all(answers: Sequence[str], rows: Dataset) -> list[dict[str, float]]:
    """Return the scores of the answer to each row."""
    return [score(answer, row["text"]) for answer, row in zip(answers, rows["answers"], strict=True)]


def mean_scores(scores: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the means of exact match and F1, as fractions."""
    return {name: float(np.mean([one[name] for one in scores])) for name in ("exact_match", "f1")}
