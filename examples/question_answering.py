"""Fine-tune a model to find answers in a text, to N:M sparsity.

    python question_answering.py --model_name_or_path google-bert/bert-base-uncased \
        --dataset_name rajpurkar/squad --output_dir bert-squad-2of4

It takes all options of `NxMConfig` and `TrainingArguments`; `--help` lists them. Without a model and data it makes both
by code: `python question_answering.py --learning_rate 1e-3`. A long text is cut into windows that overlap, and its
answer is the best span of all. Exact match and F1 are those of SQuAD, as fractions.
"""

import json
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, load_dataset
from transformers import (
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    DataCollatorWithPadding,
    HfArgumentParser,
    PreTrainedTokenizerBase,
    TrainingArguments,
)

from nxm_hf import NxMConfig, NxMTrainer, verify
from nxm_hf.demo.task import NOT, make_config, make_pairs, make_tokenizer

NO_PLACE = (-1, -1)  # of a token that is not of the text


@dataclass
class Script:
    """A model and a dataset in the form of SQuAD, by name or directory."""

    model_name_or_path: str | None = None
    dataset_name: str | None = None
    max_seq_length: int = field(default=384, metadata={"help": "Tokens of a window, with those of the question."})
    doc_stride: int = field(default=128, metadata={"help": "Tokens that two windows of a text share, a third at most."})
    max_answer_length: int = field(default=30, metadata={"help": "The most tokens of an answer."})
    hold_out: float = field(default=0.0, metadata={"help": "Evaluate on this last fraction of the training rows."})
    teacher: str | None = field(default=None, metadata={"help": "A dense model to learn from, beside the answers."})
    distillation: str | None = field(default=None, metadata={"help": "How to learn from it, as JSON."})


def make_rows(count: int, seed: int) -> Dataset:
    """Return texts of made-up words; the question is "not", and the answer the word after it."""
    rows = []
    for number, pair in enumerate(make_pairs(count, seed, negation=False)):
        first, second = pair["sentence1"], pair["sentence2"]
        context = f"{first} {NOT} {second}"
        answer = {"text": [second.split()[0]], "answer_start": [len(first) + len(NOT) + 2]}
        rows.append({"id": str(number), "question": NOT, "context": context, "answers": answer})
    return Dataset.from_list(rows)


def cut_into_windows(rows: Dataset, tokenizer: PreTrainedTokenizerBase, script: Script) -> Dataset:
    """Return windows of tokens: the row of each, where its tokens stand in the text, and where the answer is."""
    length = min(script.max_seq_length, tokenizer.model_max_length)
    stride, special = min(script.doc_stride, length // 3), tokenizer.num_special_tokens_to_add(pair=True)
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


def read_options(arguments: Sequence[str] | None = None) -> tuple[Script, NxMConfig, TrainingArguments]:
    """Return the options of a command line."""
    options: Any = (Script, NxMConfig, TrainingArguments)
    script, sparsity, args = HfArgumentParser(options).parse_args_into_dataclasses(arguments)
    if args.train_sampling_strategy == "group_by_length":
        raise ValueError("Windows that are grouped by length lose their order; leave --train_sampling_strategy out.")
    return script, sparsity, args


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, evaluate, save and verify."""
    script, sparsity, args = read_options(arguments)
    if script.dataset_name:
        rows = load_dataset(script.dataset_name)
    else:
        rows = DatasetDict(train=make_rows(2048, 1), validation=make_rows(256, 2))
    if script.hold_out:  # the last rows: they are of other texts
        rows["train"], rows["validation"] = rows["train"].train_test_split(script.hold_out, shuffle=False).values()
    if script.model_name_or_path:
        tokenizer = AutoTokenizer.from_pretrained(script.model_name_or_path)
        model = AutoModelForQuestionAnswering.from_pretrained(script.model_name_or_path)
    else:
        tokenizer, model = make_tokenizer(), AutoModelForQuestionAnswering.from_config(make_config())
    windows = {split: cut_into_windows(rows[split], tokenizer, script) for split in ("train", "validation")}
    questions, folder = rows["validation"], Path(args.output_dir or ".")

    def evaluate(prediction: Any) -> dict[str, float]:
        """Score the answers to all questions, and write them with their scores."""
        logits = prediction.predictions[:2]
        answers = best_answers(logits, windows["validation"], questions, script.max_answer_length)
        scores = [score(answer, row["text"]) for answer, row in zip(answers, questions["answers"], strict=True)]
        if trainer.is_world_process_zero():
            lines = zip(questions["id"], answers, scores, strict=True)
            text = [json.dumps({"id": name, "answer": answer, **both}) + "\n" for name, answer, both in lines]
            (folder / "predictions.jsonl").write_text("".join(text), encoding="utf-8")
        return {name: float(np.mean([both[name] for both in scores])) for name in ("exact_match", "f1")}

    trainer = NxMTrainer(
        model=model,
        args=args,
        train_dataset=windows["train"],
        eval_dataset=windows["validation"],
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=evaluate,
        sparsity=sparsity,
        teacher=script.teacher,
        distillation=json.loads(script.distillation) if script.distillation else None,
    )
    result = trainer.train()
    trainer.save_metrics("train", {**result.metrics, "train_samples": len(windows["train"])})
    trainer.save_state()
    metrics = trainer.evaluate()  # of the sparse weights
    trainer.save_metrics("eval", metrics)
    print(metrics)
    trainer.save_model()
    if not sparsity.is_dense:
        print(verify(folder).summary())


if __name__ == "__main__":
    main()
