"""Fine-tune a sentence encoder to N:M sparsity. It needs `pip install "sentence-transformers[train]"`.

    python sentence_embeddings.py --model_name_or_path sentence-transformers/all-MiniLM-L6-v2 \
        --dataset_name sentence-transformers/stsb --output_dir minilm-2of4

It takes all options of `NxMConfig` and `SentenceTransformerTrainingArguments`; `--help` lists them. Without a model and
data it makes both by code: `python sentence_embeddings.py --learning_rate 1e-3`.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, load_dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from sentence_transformers.sentence_transformer.losses import CoSENTLoss
from transformers import AutoModel, HfArgumentParser

from nxm_hf import NxMCallback, NxMConfig, verify
from nxm_hf.demo.task import VALUES, make_config, make_tokenizer


@dataclass
class Script:
    """A model and a dataset with the columns `sentence1`, `sentence2` and `score`, by name or directory."""

    model_name_or_path: str | None = None
    dataset_name: str | None = None


def make_rows(count: int, seed: int) -> Dataset:
    """Return pairs of sentences of made-up words; the score is the share of words that both have."""
    draw, rows = random.Random(seed), []
    for number in range(count):
        words, shared = draw.sample(list(VALUES), 8), number % 5
        other = [*words[:shared], *words[4 : 8 - shared]]
        rows.append({"sentence1": " ".join(words[:4]), "sentence2": " ".join(other), "score": shared / 4})
    return Dataset.from_list(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, save, verify, and evaluate what was saved."""
    options: Any = (Script, NxMConfig, SentenceTransformerTrainingArguments)
    script, sparsity, args = HfArgumentParser(options).parse_args_into_dataclasses(arguments)
    if script.dataset_name:
        rows = load_dataset(script.dataset_name)
    else:
        rows = DatasetDict(train=make_rows(2048, 1), validation=make_rows(256, 2))
    start = script.model_name_or_path or str(Path(args.output_dir) / "start")
    if not script.model_name_or_path:
        AutoModel.from_config(make_config()).save_pretrained(start)
        make_tokenizer().save_pretrained(start)

    model = SentenceTransformer(start)
    trainer = SentenceTransformerTrainer(
        model=model,
        args=args,
        train_dataset=rows["train"].select_columns(["sentence1", "sentence2", "score"]),
        loss=CoSENTLoss(model),
        callbacks=[NxMCallback(sparsity)],
    )
    trainer.train()
    trainer.save_model(args.output_dir)
    held_out = rows["validation"]
    evaluator = EmbeddingSimilarityEvaluator(held_out["sentence1"], held_out["sentence2"], held_out["score"])
    print(evaluator(SentenceTransformer(args.output_dir)))
    if not sparsity.is_dense:
        print(verify(args.output_dir).summary())


if __name__ == "__main__":
    main()
