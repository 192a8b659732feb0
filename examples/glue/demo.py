"""The main job on made-up sentence pairs, offline: fine-tune dense, with `asp` and with `admm`, and verify the result.

    python examples/glue/demo.py --output_dir out/demo

The data has the shape of a GLUE pair task. Every word has a hidden worth; the label says whether the first sentence is
worth more than the second. The model is first trained on plain sentences, which stands for pre-training. Then it is
fine-tuned on sentences with the word NOT in them, which turns round the worth of the word after it.
"""

import argparse
import shlex
import sys
import time

import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    TrainingArguments,
)
from transformers.utils import logging

from nxm_hf import NxMConfig, NxMTrainer
from nxm_hf.cli import main as nxm
from nxm_hf.methods import PHASES
from nxm_hf.table import table

WORDS, LENGTH, CLS, SEP, NOT = 100, 4, 0, 1, 2  # words are the tokens from 3 on
TRAIN, HELD_OUT, BATCH = 16384, 2048, 32

RECIPE = PHASES.index("recipe")

METHODS = {
    "dense": NxMConfig("dense"),
    "asp 2:4": NxMConfig("asp", pattern="2:4"),
    # As in its paper, ADMM finds the mask and a last stretch trains what it keeps.
    "admm 2:4": NxMConfig("admm", pattern="2:4", settle=0.3),
}


def make_pairs(count: int, seed: int, negation: bool) -> list[dict[str, torch.Tensor]]:
    """Rows of [CLS] first [SEP] second [SEP]; the label is 1 where the first sentence is worth more."""
    draw = torch.Generator().manual_seed(seed)
    worth = torch.randn(WORDS, generator=torch.Generator().manual_seed(0))
    words = torch.randint(WORDS, (count, 2, LENGTH), generator=draw)
    is_not = (torch.rand(words.shape, generator=draw) < 0.25) & torch.tensor(negation)
    is_not[..., -1] = False  # a NOT has a word after it
    values = worth[words].masked_fill(is_not, 0.0)
    values[..., 1:] *= torch.where(is_not[..., :-1], -1.0, 1.0)
    total = values.sum(-1)
    tokens = (words + 3).masked_fill(is_not, NOT)
    cls, sep = torch.full((count, 1), CLS), torch.full((count, 1), SEP)
    ids = torch.cat([cls, tokens[:, 0], sep, tokens[:, 1], sep], 1)
    segment = torch.tensor([0] * (LENGTH + 2) + [1] * (LENGTH + 1))
    labels = (total[:, 0] > total[:, 1]).long()
    return [{"input_ids": i, "token_type_ids": segment, "labels": y} for i, y in zip(ids, labels, strict=True)]


def make_model(seed: int) -> BertForSequenceClassification:
    """A BERT of two layers that knows nothing yet."""
    torch.manual_seed(seed)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=WORDS + 3,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=256,
            max_position_embeddings=16,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )


def accuracy(prediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def train(name: str, model, config: NxMConfig, steps: int, negation: bool, options: argparse.Namespace) -> NxMTrainer:
    """One training, with the evaluation before it and after it in `state.log_history`."""
    print(f"\n== {name}: {steps} steps", flush=True)
    arguments = TrainingArguments(
        output_dir=f"{options.output_dir}/runs/{name.replace(' ', '-').replace(':', 'of')}",
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=256,
        learning_rate=1e-3,
        warmup_steps=steps // 10,
        eval_on_start=True,
        logging_steps=max(steps // 4, 1),
        save_strategy="no",
        report_to=[],
        seed=options.seed,
        use_cpu=True,
        disable_tqdm=not sys.stderr.isatty(),
    )
    trainer = NxMTrainer(
        model=model,
        args=arguments,
        train_dataset=make_pairs(TRAIN, 1 + negation, negation),
        eval_dataset=make_pairs(HELD_OUT, 11 + negation, negation),
        compute_metrics=accuracy,
        sparsity=config,
    )
    trainer.train()
    trainer.evaluate()
    return trainer


def result(name: str, trainer: NxMTrainer, seconds: float) -> tuple[str, ...]:
    """A row of the table: before and after, on pairs that were not trained on."""
    history = trainer.state.log_history
    before, *_, after = (record for record in history if "eval_loss" in record)
    # Of the last record in which masks were still free to move; while they settle it is 1.
    similarity = [record["nxm/mask_similarity"] for record in history if record.get("nxm/phase") == RECIPE]
    return (
        name,
        *(f"{before[key]:.3f} -> {after[key]:.3f}" for key in ("eval_accuracy", "eval_loss")),
        f"{density(trainer.model):.4f}",
        f"{similarity[-1]:.4f}" if similarity else "-",
        f"{seconds:.0f}",
    )


def density(model) -> float:
    """The fraction of non-zeros in the layers that nxm_hf prunes."""
    weights = [p for name, p in model.named_parameters() if ".layer." in name and p.ndim == 2]
    return sum(int(p.count_nonzero()) for p in weights) / sum(p.numel() for p in weights)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", default="out/demo", help="where the sparse model is saved (default: out/demo)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and data order (default: 0)")
    parser.add_argument("--steps", type=int, default=800, help="optimizer steps of a fine-tuning (default: 800)")
    options = parser.parse_args()
    torch.set_num_threads(1)  # tensors this small only contend
    if not sys.stderr.isatty():
        logging.disable_progress_bar()

    half = max(options.steps // 2, 1)
    start = train("pre-training", make_model(options.seed), NxMConfig("dense"), half, False, options).model
    rows = []
    for name, config in METHODS.items():
        model = make_model(options.seed)
        model.load_state_dict(start.state_dict())
        began = time.perf_counter()
        trainer = train(name, model, config, options.steps, True, options)
        rows.append(result(name, trainer, time.perf_counter() - began))

    head = ("method", "accuracy", "loss", "density", "mask similarity", "seconds")
    print(
        f"\nBefore -> after {options.steps} steps, on {HELD_OUT} pairs that were not trained on, seed {options.seed}:\n"
    )
    print(table(head, rows))
    print("\nBefore: the pre-trained model as it would be shipped at step 0, for 2:4 pruned at once.")

    folder = f"{options.output_dir}/admm-2of4"
    trainer.save_model(folder)
    again = AutoModelForSequenceClassification.from_pretrained(folder).state_dict()
    same = all(torch.equal(tensor, again[key]) for key, tensor in trainer.model.state_dict().items())
    print(
        f"\nSaved to {folder}; loaded again with transformers alone: {'the same weights' if same else 'OTHER weights'}."
    )
    print(f"\n$ nxm verify {shlex.quote(folder)}")
    return nxm(["verify", folder]) or int(not same)


if __name__ == "__main__":
    sys.exit(main())
