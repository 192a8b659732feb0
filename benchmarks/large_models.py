"""Whether large models pass through all that the library does, and the memory that each part of it takes.

    python benchmarks/large_models.py deep                   a Llama of 1000 layers, 16 wide
    python benchmarks/large_models.py wide --optimizer sgd   a Llama of half a billion weights

Weights and tokens are random, and all weights are float32. AdamW would keep two more for each. There are four parts.
They are training to the middle with a save there, verifying the checkpoint, resuming in a new process to the end, and
pruning a model by magnitude. What each part writes is verified.

Each part runs in a separate process, so that its peak is measured alone. The peak is the largest resident size, with
torch (about 0.4 GiB) and mapped files.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

import nxm_hf
from nxm_hf.text import table

TINY: dict[str, Any] = dict(hidden_size=16, intermediate_size=32, num_attention_heads=2, vocab_size=64)
HALF_A_BILLION: dict[str, Any] = dict(hidden_size=1024, intermediate_size=4096, num_attention_heads=16)
CONFIGS: dict[str, dict[str, Any]] = {
    "deep": dict(TINY, num_hidden_layers=1000),
    "wide": dict(HALF_A_BILLION, num_hidden_layers=28, vocab_size=16384, tie_word_embeddings=True),
}
PARTS = ("train and save", "verify", "resume", "prune")


def make_model(name: str) -> LlamaForCausalLM:
    """Return a Llama of random weights.

    Args:
        name: "deep" or "wide".
    """
    torch.manual_seed(0)
    config = LlamaConfig(**CONFIGS[name], max_position_embeddings=128, pad_token_id=0, use_cache=False)
    return LlamaForCausalLM(config)


def make_trainer(name: str, folder: Path, given: argparse.Namespace) -> Trainer:
    """Return a Trainer of sequences of random tokens.

    Args:
        name: "deep" or "wide".
        folder: `output_dir`.
        given: The settings of the command line.
    """
    tokens = torch.randint(1, 64, (2 * given.steps, given.tokens), generator=torch.Generator().manual_seed(1))
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=given.steps,
        save_steps=given.steps // 2,
        save_total_limit=1,
        per_device_train_batch_size=1,
        learning_rate=1e-3,
        optim=given.optimizer,
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    rows = [{"input_ids": row, "labels": row} for row in tokens]
    config = nxm_hf.NxMConfig(given.recipe, pattern=given.pattern, settle=0.2)
    return nxm_hf.NxMTrainer(make_model(name), arguments, train_dataset=rows, sparsity=config)


class StopAtSave(TrainerCallback):
    """Ends a training at its first save."""

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        control.should_training_stop = True
        return control


def do(part: str, name: str, folder: Path, given: argparse.Namespace) -> str:
    """Do one part, and return what came of it.

    Args:
        part: One of `PARTS`.
        name: "deep" or "wide".
        folder: Where checkpoints are.
        given: The settings of the command line.

    Raises:
        RuntimeError: If zeros are missing.
    """
    middle, end = (folder / f"checkpoint-{step}" for step in (given.steps // 2, given.steps))
    if part == "train and save":
        trainer = make_trainer(name, folder, given)
        trainer.add_callback(StopAtSave())
        trainer.train()
    elif part == "resume":
        make_trainer(name, folder, given).train(resume_from_checkpoint=True)
    elif part == "prune":
        model = make_model(name)
        nxm_hf.prune(model, given.pattern, method="magnitude")
        model.save_pretrained(folder / "pruned")
    looked_at = {"train and save": middle, "verify": middle, "resume": end, "prune": folder / "pruned"}[part]
    found = nxm_hf.verify(looked_at)
    if not found.ok:
        raise RuntimeError(f"{part} left wrong zeros: {found}")
    return f"{len(found.layers)} layers of density {found.density:.2f}"


def measure(part: str, given: argparse.Namespace, folder: Path) -> list[str]:
    """Do one part in a process of its own, and return a row of the table.

    Args:
        part: One of `PARTS`.
        given: The settings of the command line.
        folder: Where checkpoints are.
    """
    command = [sys.executable, __file__, *sys.argv[1:], "--part", part, "--folder", str(folder)]
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    facts = json.loads(ran.stdout.splitlines()[-1])
    return [part, facts["outcome"], f"{facts['seconds']:.0f}", f"{facts['peak'] / 2**30:.2f}"]


def main() -> None:
    """Do all parts, one after the other, and print their peaks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=CONFIGS)
    parser.add_argument("--recipe", default="sr-ste", help="the recipe to train with (%(default)s)")
    parser.add_argument("--pattern", default="2:4", help="the pattern (%(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="steps of the training (%(default)s)")
    parser.add_argument("--tokens", type=int, default=16, help="tokens of a sequence, of which a step has one")
    parser.add_argument("--optimizer", default="adamw_torch", help="`optim` of the Trainer (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (%(default)s)")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)  # in a process of its own
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.part is None:
        with tempfile.TemporaryDirectory() as folder:
            rows = [measure(part, given, Path(folder)) for part in PARTS]
        print(table(("part", "outcome", "CPU s", "peak GiB"), rows))
        return
    outcome = do(given.part, given.model, given.folder, given)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"outcome": outcome, "seconds": time.process_time(), "peak": peak}))


if __name__ == "__main__":
    main()
