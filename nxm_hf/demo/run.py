"""Run the demo: train a small BERT on plain sentences, fine-tune it dense and sparse, and compare."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertForSequenceClassification,
    EvalPrediction,
    PreTrainedTokenizerBase,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback

from nxm_hf import NxMConfig, NxMTrainer
from nxm_hf.demo.task import LABELS, make_config, make_pairs, make_tokenizer
from nxm_hf.layers.plan import Plan
from nxm_hf.storage.verify import Verification, verify
from nxm_hf.text import table

TRAIN_ROWS, HELD_OUT_ROWS = 16384, 2048
Rows = list[dict[str, Any]]


def run_demo(
    out: str | Path,
    config: NxMConfig,
    steps: int,
    seed: int,
    show: Callable[[str], None] = print,
    rows: tuple[int, int] = (TRAIN_ROWS, HELD_OUT_ROWS),
) -> Verification:
    """Fine-tune a small BERT dense, with `asp` and with a recipe; save, load and verify the last one.

    A training on plain sentences stands for pre-training. The fine-tuning adds the word "not".

    Args:
        out: The directory to write; it must not exist, or be empty.
        config: The recipe and the pattern.
        steps: Optimizer steps of each fine-tuning.
        seed: The seed of the trainings.
        show: The function that the texts go to.
        rows: The number of training rows, and of rows held out.

    Returns:
        What was found in the saved sparse model.

    Raises:
        ValueError: If `out` is not empty or an argument is wrong.
    """
    out = Path(out)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ValueError(f"{out} is there already, and nothing is overwritten. Name another place, or remove it.")
    with torch.device("meta"):
        Plan.of(BertForSequenceClassification(make_config()), config)  # raises before minutes of training
    show(f"Training a BERT of two layers on {rows[0]} made-up sentence pairs, {max(steps // 2, 1)} steps ...")
    set_seed(seed)
    start = BertForSequenceClassification(make_config())
    _train(start, "dense", max(steps // 2, 1), seed, out / "start", _encoded(rows, negation=False))
    pairs, cells = _encoded(rows, negation=True), []
    configs: dict[str, NxMConfig | str] = {
        "dense": "dense",
        "asp": NxMConfig("asp", config.pattern),
        config.recipe: config,
    }
    for name, sparsity in configs.items():
        show(f"Fine-tuning it on pairs with the word not: {name}, {steps} steps ...")
        model = BertForSequenceClassification.from_pretrained(out / "start")
        trainer, seconds = _train(model, sparsity, steps, seed, out / name, pairs)
        cells.append(_row(name, trainer, seconds))
    head = ("recipe", "accuracy", "loss", "density", "seconds")
    show(f"\nBefore -> after fine-tuning to {config.pattern}, on {rows[1]} pairs that were not trained on:\n")
    show(table(head, cells))
    show("\nBefore: the first model as it would be deployed; sparse ones are pruned at once.")
    show(f"\nSaved to {out / name}. It loads with transformers alone. `nxm verify {out / name} --summary` says:\n")
    found = verify(out / name)
    show(str(found.summary()))
    return found


def _encoded(rows: tuple[int, int], negation: bool) -> tuple[Rows, Rows]:
    """Return tokens and labels of the rows to train on, and of those held out."""
    tokenizer = make_tokenizer()
    train, held_out = (
        [_encode(pair, tokenizer) for pair in make_pairs(count, seed + negation, negation)]
        for count, seed in zip(rows, (1, 11), strict=True)
    )
    return train, held_out


def _encode(pair: dict[str, str], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return {**tokenizer(pair["sentence1"], pair["sentence2"]), "labels": LABELS.index(pair["label"])}


def _train(
    model: BertForSequenceClassification,
    sparsity: NxMConfig | str,
    steps: int,
    seed: int,
    folder: Path,
    rows: tuple[Rows, Rows],
) -> tuple[NxMTrainer, float]:
    """Train, evaluate before and after, and save. Return the trainer and the seconds that it took."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        learning_rate=1e-3,
        warmup_steps=steps // 10,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=256,
        eval_on_start=True,
        save_strategy="no",
        logging_steps=max(steps // 4, 1),
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        seed=seed,
    )
    trainer = NxMTrainer(
        model=model,
        args=arguments,
        train_dataset=rows[0],
        eval_dataset=rows[1],
        processing_class=make_tokenizer(),
        compute_metrics=_accuracy,
        sparsity=sparsity,
    )
    trainer.remove_callback(PrinterCallback)
    began = time.perf_counter()
    trainer.train()
    trainer.evaluate()
    trainer.save_model()
    return trainer, time.perf_counter() - began


def _accuracy(prediction: EvalPrediction) -> dict[str, float]:
    logits: Any = prediction.predictions
    return {"accuracy": float((logits.argmax(-1) == prediction.label_ids).mean())}


def _row(name: str, trainer: NxMTrainer, seconds: float) -> tuple[str, ...]:
    """Return a row of the table: the evaluation before and after training."""
    before, *_, after = (record for record in trainer.state.log_history if "eval_loss" in record)
    assert trainer.model is not None
    weights = [p for layer, p in trainer.model.named_parameters() if ".layer." in layer and p.ndim == 2]
    density = sum(int(torch.count_nonzero(p)) for p in weights) / sum(p.numel() for p in weights)
    scores = (f"{before[key]:.3f} -> {after[key]:.3f}" for key in ("eval_accuracy", "eval_loss"))
    return (name, *scores, f"{density:.4f}", f"{seconds:.0f}")
