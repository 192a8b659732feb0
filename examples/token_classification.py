"""Fine-tune a token classifier to N:M sparsity. It needs `pip install datasets`.

    python token_classification.py --recipe admm --pattern 2:4 --output_dir bert-ner-2of4

It takes all options of `NxMConfig` and `TrainingArguments`; `--help` lists them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from datasets import load_dataset
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    HfArgumentParser,
    TrainingArguments,
    set_seed,
)

from nxm_hf import NxMConfig, NxMTrainer, verify


@dataclass
class Script:
    """A model, and a dataset with the columns `tokens` and `ner_tags`, by name or directory."""

    model_name_or_path: str = "google-bert/bert-base-cased"
    dataset_name: str = "unimelb-nlp/wikiann"
    dataset_config_name: str = "en"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, evaluate, save and verify."""
    options: Any = (Script, NxMConfig, TrainingArguments)
    script, sparsity, args = HfArgumentParser(options).parse_args_into_dataclasses(arguments)
    set_seed(args.seed)  # of a new head
    rows = load_dataset(script.dataset_name, script.dataset_config_name)
    labels = dict(enumerate(rows["train"].features["ner_tags"].feature.names))
    model = AutoModelForTokenClassification.from_pretrained(
        script.model_name_or_path, id2label=labels, label2id={name: number for number, name in labels.items()}
    )
    tokenizer = AutoTokenizer.from_pretrained(script.model_name_or_path)

    def tokenize(row: dict[str, Any]) -> dict[str, Any]:
        batch = tokenizer(row["tokens"], is_split_into_words=True, truncation=True)
        words = pairwise([None, *batch.word_ids()])  # the first token of a word has its tag, the others have none
        tags = [-100 if word in (None, before) else row["ner_tags"][word] for before, word in words]
        return {**batch, "labels": tags}

    def accuracy(prediction: Any) -> dict[str, float]:
        is_right = prediction.predictions.argmax(-1) == prediction.label_ids
        return {"accuracy": float(is_right[prediction.label_ids != -100].mean())}

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
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    print(trainer.evaluate())  # of the sparse weights
    trainer.save_model()
    if not sparsity.is_dense:
        print(verify(args.output_dir).summary())


if __name__ == "__main__":
    main()
