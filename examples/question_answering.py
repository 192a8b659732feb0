"""Fine-tune a model to find answers in a text, to N:M sparsity.

    python question_answering.py --model_name_or_path google-bert/bert-base-uncased \
        --dataset_name rajpurkar/squad --output_dir bert-squad-2of4

It takes all options of `NxMConfig` and `TrainingArguments`; `--help` lists them. Without a model and data it makes both
by code: `python question_answering.py --learning_rate 1e-3`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, load_dataset
from transformers import (
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    DataCollatorWithPadding,
    HfArgumentParser,
    TrainingArguments,
)

from nxm_hf import NxMConfig, NxMTrainer, verify
from nxm_hf.demo.task import NOT, make_config, make_pairs, make_tokenizer


@dataclass
class Script:
    """A model and a dataset in the form of SQuAD, by name or directory."""

    model_name_or_path: str | None = None
    dataset_name: str | None = None
    max_length: int = 384


def make_rows(count: int, seed: int) -> Dataset:
    """Return texts of made-up words; the question is "not", and the answer the word after it."""
    rows = []
    for pair in make_pairs(count, seed, negation=False):
        first, second = pair["sentence1"], pair["sentence2"]
        context = f"{first} {NOT} {second}"
        answer = {"text": [second.split()[0]], "answer_start": [len(first) + len(NOT) + 2]}
        rows.append({"question": NOT, "context": context, "answers": answer})
    return Dataset.from_list(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, evaluate, save and verify."""
    options: Any = (Script, NxMConfig, TrainingArguments)
    script, sparsity, args = HfArgumentParser(options).parse_args_into_dataclasses(arguments)
    if script.dataset_name:
        rows = load_dataset(script.dataset_name)
    else:
        rows = DatasetDict(train=make_rows(2048, 1), validation=make_rows(256, 2))
    if script.model_name_or_path:
        tokenizer = AutoTokenizer.from_pretrained(script.model_name_or_path)
        model = AutoModelForQuestionAnswering.from_pretrained(script.model_name_or_path)
    else:
        tokenizer, model = make_tokenizer(), AutoModelForQuestionAnswering.from_config(make_config())

    def tokenize(row: dict[str, Any]) -> dict[str, Any]:
        length = min(script.max_length, tokenizer.model_max_length)
        batch = tokenizer(row["question"], row["context"], truncation="only_second", max_length=length)
        span: list[int | None] = [None]
        if row["answers"]["text"]:
            start = row["answers"]["answer_start"][0]
            ends = (start, start + len(row["answers"]["text"][0]) - 1)
            span = [batch.char_to_token(end, sequence_index=1) for end in ends]
        first, last = (0, 0) if None in span else span  # an answer that was cut off is at the first token
        return {**batch, "start_positions": first, "end_positions": last}

    def exact(prediction: Any) -> dict[str, float]:
        found = [logits.argmax(-1) == true for logits, true in zip(*prediction, strict=True)]
        return {"exact_match": float(np.mean(found[0] & found[1]))}

    rows = rows.map(tokenize, remove_columns=rows["train"].column_names)
    trainer = NxMTrainer(
        model=model,
        args=args,
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=exact,
        sparsity=sparsity,
    )
    trainer.train()
    print(trainer.evaluate())  # of the sparse weights
    trainer.save_model()
    print(verify(args.output_dir).summary())


if __name__ == "__main__":
    main()
