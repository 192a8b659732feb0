"""Fine-tune an image classifier to N:M sparsity. It needs `pip install datasets pillow`.

    python image_classification.py --model_name_or_path google/vit-base-patch16-224-in21k \
        --dataset_name ethz/food101 --learning_rate 5e-5 --output_dir vit-food-2of4

It takes all options of `NxMConfig` and `TrainingArguments`; `--help` lists them. Without a model and data it makes both
by code: `python image_classification.py --learning_rate 1e-3`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, load_dataset
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    HfArgumentParser,
    TrainingArguments,
    ViTConfig,
    ViTImageProcessor,
)

from nxm_hf import NxMConfig, NxMTrainer, verify

DIRECTIONS = {"horizontal": (1, 0), "rising": (1, 1), "vertical": (0, 1), "falling": (1, -1)}  # change by row, column
SIDE = 16


@dataclass
class Script:
    """A model and a dataset with the columns `image` and `label`, by name or directory."""

    model_name_or_path: str | None = None
    dataset_name: str | None = None


def make_rows(count: int, seed: int) -> Dataset:
    """Return noisy images of coloured stripes, as many of each of four directions; the label is the direction."""
    draw, (row, column), images = np.random.default_rng(seed), np.indices((SIDE, SIDE)), []
    labels = [number % len(DIRECTIONS) for number in range(count)]
    for down, right in map(list(DIRECTIONS.values()).__getitem__, labels):
        wave = np.sin(draw.uniform(0.7, 1.3) * (down * row + right * column) + draw.uniform(0, 2 * np.pi))
        image = 128 + 60 * wave[..., None] * draw.uniform(0.3, 1, 3) + draw.normal(0, 20, (SIDE, SIDE, 3))
        images.append(image.clip(0, 255).astype(np.uint8))
    features = Features(image=Image(), label=ClassLabel(names=list(DIRECTIONS)))
    return Dataset.from_dict({"image": images, "label": labels}, features=features)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, evaluate, save and verify."""
    options: Any = (Script, NxMConfig, TrainingArguments)
    script, sparsity, args = HfArgumentParser(options).parse_args_into_dataclasses(arguments)
    args.remove_unused_columns = False  # the collator reads the images
    if script.dataset_name:
        rows = load_dataset(script.dataset_name)
    else:
        rows = DatasetDict(train=make_rows(2048, 1), validation=make_rows(256, 2))
    names = rows["train"].features["label"].names
    labels: dict[str, Any] = dict(id2label=dict(enumerate(names)), label2id={x: i for i, x in enumerate(names)})
    if script.model_name_or_path:
        processor = AutoImageProcessor.from_pretrained(script.model_name_or_path)
        model = AutoModelForImageClassification.from_pretrained(
            script.model_name_or_path,
            **labels,
            ignore_mismatched_sizes=True,  # a head for another number of labels is replaced by a new one
        )
    else:
        processor = ViTImageProcessor(size={"height": SIDE, "width": SIDE})
        config = ViTConfig(
            image_size=SIDE,
            patch_size=4,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            **labels,
        )
        model = AutoModelForImageClassification.from_config(config)

    def collate(batch: list[dict[str, Any]]) -> dict[str, Any]:
        images = processor([row["image"].convert("RGB") for row in batch], return_tensors="pt")
        return {**images, "labels": torch.tensor([row["label"] for row in batch])}

    def accuracy(prediction: Any) -> dict[str, float]:
        return {"accuracy": float(np.mean(prediction.predictions.argmax(-1) == prediction.label_ids))}

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
    trainer.train()
    print(trainer.evaluate())  # of the sparse weights
    trainer.save_model()
    if not sparsity.is_dense:
        print(verify(args.output_dir).summary())


if __name__ == "__main__":
    main()
