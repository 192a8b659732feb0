"""Fine-tune an image classifier to N:M sparsity. It needs `pip install datasets pillow`.

    python image_classification.py --recipe admm --pattern 2:4 --output_dir vit-food-2of4

It takes all options of `NxMConfig` and `TrainingArguments`; `--help` lists them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import load_dataset
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    HfArgumentParser,
    TrainingArguments,
    set_seed,
)

from nxm_hf import NxMConfig, NxMTrainer, verify


@dataclass
class Script:
    """A model, and a dataset with the columns `image` and `label`, by name or directory."""

    model_name_or_path: str = "google/vit-base-patch16-224-in21k"
    dataset_name: str = "ethz/food101"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, evaluate, save and verify."""
    options: Any = (Script, NxMConfig, TrainingArguments)
    script, sparsity, args = HfArgumentParser(options).parse_args_into_dataclasses(arguments)
    set_seed(args.seed)  # of a new head
    args.remove_unused_columns = False  # the collator reads the images
    rows = load_dataset(script.dataset_name)
    labels = dict(enumerate(rows["train"].features["label"].names))
    model = AutoModelForImageClassification.from_pretrained(
        script.model_name_or_path,
        id2label=labels,
        label2id={name: number for number, name in labels.items()},
        ignore_mismatched_sizes=True,  # a head for another number of labels is replaced by a new one
    )
    processor = AutoImageProcessor.from_pretrained(script.model_name_or_path)

    def collate(batch: list[dict[str, Any]]) -> dict[str, Any]:
        images = processor([row["image"].convert("RGB") for row in batch], return_tensors="pt")
        return {**images, "labels": torch.tensor([row["label"] for row in batch])}

    def accuracy(prediction: Any) -> dict[str, float]:
        return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

    trainer = NxMTrainer(
        model=model,
        args=args,
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        processing_class=processor,
        data_collator=collate,
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
