"""Fine-tune a sentence encoder to N:M sparsity. It needs `pip install "sentence-transformers[train]"`.

    python sentence_embeddings.py --recipe admm --pattern 2:4 --output_dir minilm-2of4

It takes all options of `NxMConfig` and `SentenceTransformerTrainingArguments`; `--help` lists them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datasets import load_dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from sentence_transformers.sentence_transformer.losses import CoSENTLoss
from transformers import HfArgumentParser

from nxm_hf import NxMCallback, NxMConfig, verify


@dataclass
class Script:
    """A model, and a dataset with the columns `sentence1`, `sentence2` and `score`, by name or directory."""

    model_name_or_path: str = "sentence-transformers/all-MiniLM-L6-v2"
    dataset_name: str = "sentence-transformers/stsb"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, evaluate, save and verify."""
    options: Any = (Script, NxMConfig, SentenceTransformerTrainingArguments)
    script, sparsity, args = HfArgumentParser(options).parse_args_into_dataclasses(arguments)
    rows = load_dataset(script.dataset_name).select_columns(["sentence1", "sentence2", "score"])
    model = SentenceTransformer(script.model_name_or_path)
    trainer = SentenceTransformerTrainer(
        model=model,
        args=args,
        train_dataset=rows["train"],
        loss=CoSENTLoss(model),
        evaluator=EmbeddingSimilarityEvaluator(*rows["validation"].to_dict().values()),
        callbacks=[NxMCallback(sparsity)],
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    print(trainer.evaluate())  # of the sparse weights
    trainer.save_model()
    if not sparsity.is_dense:
        print(verify(args.output_dir).summary())


if __name__ == "__main__":
    main()
