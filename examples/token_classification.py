"""Fine-tune a token classifier to N:M sparsity.

    python token_classification.py --model_name_or_path google-bert/bert-base-cased \
        --dataset_name unimelb-nlp/wikiann --dataset_config_name en --output_dir bert-ner-2of4

It takes all options of `NxMConfig` and `TrainingArguments`; `--help` lists them. Without a model and data it makes both
by code: `python token_classification.py --learning_rate 1e-3`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, load_dataset
from datasets import Sequence as ListOf
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    HfArgumentParser,
    TrainingArguments,
)

from nxm_hf import NxMConfig, NxMTrainer, verify
from nxm_hf.demo.task import NOT, make_config, make_pairs, make_tokenizer


@dataclass
class Script:
    """A model and a dataset with the columns `tokens` and `ner_tags`, by name or directory."""

    model_name_or_path: str | None = None
    dataset_name: str | None = None
    dataset_config_name: str | None = None


def make_rows(count: int, seed: int) -> Dataset:
    """Return sentences of made-up words, in which each word after a "not" is tagged."""
    tokens = [row["sentence1"].split() for row in make_pairs(count, seed, negation=True)]
    tags = [[int(before == NOT) for before in ["", *words[:-1]]] for words in tokens]
    rows = Dataset.from_dict({"tokens": tokens, "ner_tags": tags})
    return rows.cast_column("ner_tags", ListOf(ClassLabel(names=["O", "NEGATED"])))


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, evaluate, save and verify."""
    options: Any = (Script, NxMConfig, TrainingArguments)
    script, sparsity, args = HfArgumentParser(options).parse_args_into_dataclasses(arguments)
    if script.dataset_name:
        rows = load_dataset(script.dataset_name, script.dataset_config_name)
    else:
        rows = DatasetDict(train=make_rows(2048, 1), validation=make_rows(256, 2))
    labels = dict(enumerate(rows["train"].features["ner_tags"].feature.names))
    if script.model_name_or_path:
        tokenizer = AutoTokenizer.from_pretrained(script.model_name_or_path)
        model = AutoModelForTokenClassification.from_pretrained(script.model_name_or_path, id2label=labels)
    else:
        tokenizer, config = make_tokenizer(), make_config()
        config.id2label = labels
        model = AutoModelForTokenClassification.from_config(config)

    def tokenize(row: dict[str, Any]) -> dict[str, Any]:
        batch = tokenizer(row["tokens"], is_split_into_words=True, truncation=True)
        words = batch.word_ids()
        first = [word is not None and word != before for before, word in zip([None, *words], words, strict=False)]
        tags = [row["ner_tags"][word] if is_first else -100 for word, is_first in zip(words, first, strict=True)]
        return {**batch, "labels": tags}

    def accuracy(prediction: Any) -> dict[str, float]:
        counted = prediction.label_ids != -100
        right = prediction.predictions.argmax(-1)[counted] == prediction.label_ids[counted]
        return {"accuracy": float(np.mean(right))}

    rows = rows.map(tokenize, remove_columns=rows["train"].column_names)
    trainer = NxMTrainer(
        model=model,
        args=args,
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        processing_class=tokenizer,
        data_collator=DataCollatorForTokenClassification(tokenizer),
        compute_metrics=accuracy,
        sparsity=sparsity,
    )
    trainer.train()
    print(trainer.evaluate())  # of the sparse weights
    trainer.save_model()
    if not sparsity.is_dense:
        print(verify(args.output_dir).summary())


if __name__ == "__main__":
    main()
