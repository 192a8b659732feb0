"""What `run_glue.py --task_name demo` does: the main job on made-up sentence pairs, with no network and no data.

The pairs have the shape of a GLUE task. Every word has a hidden worth; the label says whether the first sentence is
worth more than the second. A small BERT is first trained on plain sentences, which stands for pre-training. Then it is
fine-tuned on sentences with the word "not" in them, which turns round the worth of the word after it: dense, pruned
once, and with the recipe that was asked for. Each training is a command of `run_glue.py`, and is printed.
`compare.py --tasks demo` compares recipes on the same model and rows.
"""

import json
import os
import random
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from filelock import FileLock
from run_glue import Run, evaluate_splits, make_trainer, read_options, train
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from nxm_hf import NxMTrainer
from nxm_hf.cli.main import main as nxm
from nxm_hf.methods import PHASES
from nxm_hf.text import table

NOT, LABELS, LENGTH = "not", ("less", "more"), 4
WORTH = {f"word{i}": random.Random(i).gauss(0, 1) for i in range(100)}
TRAIN, HELD_OUT, STEPS = 16384, 2048, 800
LEARNING_RATE = 1e-3
SHARED = {
    "--warmup_steps": 0.1,
    "--per_device_train_batch_size": 32,
    "--per_device_eval_batch_size": 256,
    "--use_cpu": True,
}
TO_THE_END = {"--learning_rate": LEARNING_RATE, "--save_strategy": "no", "--do_train": True, "--do_eval": True}
RECIPE = PHASES.index("recipe")


def make_pairs(count: int, seed: int, negation: bool) -> Iterator[dict[str, str]]:
    """Rows of two sentences, and whether the first is worth less or more."""
    draw = random.Random(seed)
    words = list(WORTH)
    for _ in range(count):
        sentences = [[draw.choice(words) for _ in range(LENGTH)] for _ in range(2)]
        for sentence in sentences if negation else ():
            for place in range(LENGTH - 1):  # a "not" has a word after it
                sentence[place] = NOT if draw.random() < 0.25 else sentence[place]
        first, second = map(worth, sentences)
        yield {
            "sentence1": " ".join(sentences[0]),
            "sentence2": " ".join(sentences[1]),
            "label": LABELS[first > second],
        }


def worth(sentence: list[str]) -> float:
    """The sum over its words, of which each after a "not" counts negative."""
    before = ["", *sentence]
    return sum(WORTH.get(word, 0) * (-1 if last == NOT else 1) for last, word in zip(before, sentence, strict=False))


def write_rows(folder: Path) -> None:
    """Plain sentences and those with "not", a file for each split."""
    for name, negation in (("plain", False), ("with-not", True)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for split, count, seed in (("train", TRAIN, 1 + negation), ("validation", HELD_OUT, 11 + negation)):
            rows = make_pairs(count, seed, negation)
            (folder / name / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def write_shape(folder: Path) -> None:
    """The tokenizer, and the shape of a BERT of two layers."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", NOT, *WORTH]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=32, **special).save_pretrained(folder)
    BertConfig(
        vocab_size=len(words),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        architectures=[BertForSequenceClassification.__name__],
    ).save_pretrained(folder)


def spelled(options: dict) -> list[str]:
    """Options as the words of a command line."""
    return [str(word) for pair in options.items() for word in pair]


def start_options(folder: Path, steps: int) -> dict:
    """What stands for pre-training: half of the steps on plain sentences."""
    return {
        **{"--model_name_or_path": folder / "shape", "--from_scratch": True, "--dataset_name": folder / "rows/plain"},
        **{"--recipe": "dense", "--max_steps": max(steps // 2, 1)},
    }


def commands(folder: Path, run: Run) -> Iterator[tuple[str, list[str]]]:
    """The trainings by name, each as the words of its command line."""
    seed, steps = run.training.seed, run.training.max_steps if run.training.max_steps > 0 else STEPS
    shared = {
        **SHARED,
        **TO_THE_END,
        "--logging_steps": max(steps // 4, 1),
        "--seed": seed,
        "--disable_tqdm": run.training.disable_tqdm or not sys.stderr.isatty(),
        "--eval_on_start": True,
    }
    pattern = run.sparsity.pattern
    pattern = json.dumps(pattern) if isinstance(pattern, dict) else pattern
    start = {"--model_name_or_path": folder / "start", "--dataset_name": folder / "rows/with-not", "--max_steps": steps}
    ours = {
        name: json.dumps(value) if isinstance(value, dict) else value
        for name in ("recipe", "settings", "warmup", "settle")
        if (value := getattr(run.sparsity, name))
    }
    trainings = {
        "start": start_options(folder, steps),
        "dense": {**start, "--recipe": "dense"},
        "asp": {**start, "--recipe": "asp", "--pattern": pattern},
        run.sparsity.recipe: {**start, **{f"--{name}": value for name, value in ours.items()}, "--pattern": pattern},
    }
    for name, options in trainings.items():
        yield name, spelled({**options, **shared, "--output_dir": folder / name})


def fine_tune(words: list[str]) -> tuple[NxMTrainer, float]:
    """Run one command of `run_glue.py`."""
    print("\n$ python run_glue.py", shlex.join(words), flush=True)
    began = time.perf_counter()
    run = read_options(words)
    trainer, task, rows = make_trainer(run)
    train(run, trainer)
    evaluate_splits(run, trainer, task, rows)
    return trainer, time.perf_counter() - began


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


def ready(folder: Path) -> dict:
    """What `compare.py` gives all trainings where nobody says otherwise; rows and shapes are made, no weights yet."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # tensors this small only contend
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        if not (folder / "start" / "config.json").exists():
            write_rows(folder / "rows")
            write_shape(folder / "shape")
            write_shape(folder / "start")
    where = {"--model_name_or_path": folder / "start", "--dataset_name": folder / "rows/with-not"}
    return {**where, "--max_steps": STEPS, "--logging_steps": 20, "--disable_tqdm": True, **SHARED}


def train_start(folder: Path) -> None:
    """Train the model that `compare.py` starts from, unless somebody has."""
    quiet = {"--logging_steps": STEPS, "--disable_tqdm": True, "--output_dir": folder / "start"}
    with FileLock(folder / "lock"):
        if not (folder / "start" / "all_results.json").exists():  # which a training writes last
            fine_tune(spelled({**start_options(folder, STEPS), **SHARED, **TO_THE_END, **quiet}))


def show(run: Run) -> int:
    """Run it all; 0 if what was saved is what was trained, and holds its pattern."""
    folder = Path(run.training.output_dir)
    torch.set_num_threads(1)  # tensors this small only contend
    write_rows(folder / "rows")
    write_shape(folder / "shape")
    rows = []
    for name, words in commands(folder, run):
        trainer, seconds = fine_tune(words)
        if name != "start":
            rows.append(result(name if name == "dense" else f"{name} {run.sparsity.pattern}", trainer, seconds))
    head = ("recipe", "accuracy", "loss", "density", "mask similarity", "seconds")
    print(f"\nBefore -> after fine-tuning, on {HELD_OUT} pairs that were not trained on, seed {run.training.seed}:\n")
    print(table(head, rows))
    print("\nBefore: the pre-trained model as it would be shipped at step 0, so if sparse, pruned at once.")
    return check(folder / name, trainer)


def check(saved: Path, trainer: NxMTrainer) -> int:
    """Load the model again with transformers alone, and verify its zeros."""
    again = AutoModelForSequenceClassification.from_pretrained(saved).state_dict()
    same = all(torch.equal(tensor, again[key]) for key, tensor in trainer.model.state_dict().items())
    print(
        f"\nSaved to {saved}; loaded again with transformers alone: {'the same weights' if same else 'OTHER weights'}."
    )
    print(f"\n$ nxm verify {shlex.quote(str(saved))}")
    return nxm(["verify", str(saved)]) or int(not same)
