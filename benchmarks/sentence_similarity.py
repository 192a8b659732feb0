"""A sentence-transformers model at 2:4: Spearman's correlation on scored pairs, without training and fine-tuned.

    python benchmarks/sentence_similarity.py --model path/to/all-MiniLM-L6-v2 --pairs path/to/stsb --seed 0

The folder of pairs holds train.parquet and validation.parquet, with the columns sentence1, sentence2 and label from 0
to 5. The rows are the dense model, pruned by magnitude, pruned by alps, fine-tuned to 2:4 with a recipe, and fine-tuned
dense. alps reads the sentences of the training pairs. Each score is that of the model as `SentenceTransformer(folder)`
loads it from what was saved. Both trainings have the same settings. `cpu` is the processor time of pruning or training.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
    losses,
)
from sentence_transformers.evaluation import EmbeddingSimilarityEvaluator

from nxm_hf import NxMCallback, NxMConfig, prune, verify
from nxm_hf.text import table

HEADINGS = ("model", "Spearman", "density", "cpu")


def read_pairs(folder: Path, split: str) -> Dataset:
    """Read scored pairs, with scores from 0 to 1.

    Args:
        folder: The folder of the parquet files.
        split: "train" or "validation".
    """
    rows = Dataset.from_parquet(str(folder / f"{split}.parquet"))
    scores = [label / 5 for label in rows["label"]]
    return rows.select_columns(["sentence1", "sentence2"]).add_column("score", scores)


def fine_tune(model: SentenceTransformer, rows: Dataset, arguments: argparse.Namespace, callbacks: list[Any]) -> None:
    """Train on scored pairs.

    Args:
        model: The model.
        rows: The pairs.
        arguments: The options of the command line.
        callbacks: Callbacks of the Trainer.
    """
    args = SentenceTransformerTrainingArguments(
        output_dir=tempfile.mkdtemp(),
        num_train_epochs=arguments.epochs,
        per_device_train_batch_size=32,
        learning_rate=arguments.learning_rate,
        warmup_steps=0.1,
        save_strategy="no",
        report_to=[],
        seed=arguments.seed,
        use_cpu=True,
    )
    loss = losses.CoSENTLoss(model)
    SentenceTransformerTrainer(model=model, args=args, train_dataset=rows, loss=loss, callbacks=callbacks).train()


def variants(rows: Dataset, arguments: argparse.Namespace) -> dict[str, Callable[[SentenceTransformer], object]]:
    """Return what is done to the model, by the name of the row.

    Args:
        rows: The training pairs.
        arguments: The options of the command line.
    """
    texts = [*rows["sentence1"], *rows["sentence2"]]
    return {
        "dense": lambda model: None,
        "magnitude, no training": lambda model: prune(model, "2:4", "magnitude"),
        "alps, no training": lambda model: prune(model, "2:4", "alps", texts, samples=arguments.samples),
        f"{arguments.recipe}, fine-tuned": lambda model: fine_tune(
            model, rows, arguments, [NxMCallback(NxMConfig(arguments.recipe, pattern="2:4"))]
        ),
        "dense, fine-tuned": lambda model: fine_tune(model, rows, arguments, []),
    }


def main() -> None:
    """Print each row as soon as it is measured, and all of them in a table at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a directory of a sentence-transformers model")
    parser.add_argument("--pairs", required=True, type=Path, help="a folder with train.parquet and validation.parquet")
    parser.add_argument("--recipe", default="admm", help="the recipe of the sparse training (default: %(default)s)")
    parser.add_argument("--epochs", type=float, default=0.5)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--samples", type=int, default=512, help="sentences that alps reads (default: %(default)s)")
    parser.add_argument("--only", action="append", help="measure only rows that begin so")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    train, validation = (read_pairs(arguments.pairs, split) for split in ("train", "validation"))
    evaluator = EmbeddingSimilarityEvaluator(validation["sentence1"], validation["sentence2"], validation["score"])
    found = []
    for name, change in variants(train, arguments).items():
        if arguments.only and not name.startswith(tuple(arguments.only)):
            continue
        model, began = SentenceTransformer(arguments.model, device="cpu"), time.process_time()
        change(model)
        seconds = time.process_time() - began
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            density = "1" if name.startswith("dense") else f"{verify(folder).density:.2f}"
            score = evaluator(SentenceTransformer(folder, device="cpu"))["spearman_cosine"]
        found.append((name, f"{score:.4f}", density, f"{seconds:.0f} s"))
        print("  ".join(found[-1]), flush=True)
    print("\n" + table(HEADINGS, found))


if __name__ == "__main__":
    main()
