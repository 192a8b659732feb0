"""The peak memory of processes that share a model by FSDP2, while it is pruned and while `admm` trains it.

    python benchmarks/sharded_memory.py
    python benchmarks/sharded_memory.py --blocks 4 --width 256 --processes 1

The model is a Llama of random weights in fp32. Each row of the table has a group of processes of its own. `most beside`
is the largest resident size of each process, minus its size before. It is measured while `nxm_hf.prune` runs, or in the
step in which `admm` prunes the sharded model with ALPS. A tiny model is pruned first, so that code that is loaded does
not count. `planned` is what a process holds all the time, by `nxm_hf.analysis.training_memory`; a model that is only
pruned has its weights alone.
"""

import argparse
import gc
import json
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

import nxm_hf
from benchmarks.packed_size import resident
from nxm_hf import Engine, NxMConfig
from nxm_hf.analysis import training_memory
from nxm_hf.layers.modules import find_blocks
from nxm_hf.layers.plan import Plan

TRAINED = "admm, in training"  # which prunes by ALPS at its third step
ROWS = ("wanda", "sparsegpt", "alps", TRAINED)
STEPS = 4


def make_model(given: argparse.Namespace) -> LlamaForCausalLM:
    """Return a Llama of random weights.

    Args:
        given: The settings of the command line.
    """
    torch.manual_seed(0)
    sizes = dict(hidden_size=given.width, intermediate_size=2 * given.width, num_hidden_layers=given.blocks)
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=8, vocab_size=given.vocabulary))


def make_rows(given: argparse.Namespace) -> list[dict[str, Tensor]]:
    """Return random tokens.

    Args:
        given: The settings of the command line.
    """
    ids = torch.randint(0, given.vocabulary, (given.rows, given.tokens), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row} for row in ids]


class Peak:
    """Measures the largest resident size in a `with` block, beside that at its beginning."""

    most = 0

    def __enter__(self) -> "Peak":
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # begin VmHWM anew
        self._before = resident("VmRSS")
        return self

    def __exit__(self, *error: object) -> None:
        self.most = resident("VmHWM") - self._before


def prune_alone(method: str, model: LlamaForCausalLM, rows: list[dict[str, Tensor]]) -> int:
    """Prune a sharded model, and return the most bytes beside it.

    Args:
        method: The method of `nxm_hf.prune`.
        model: The model.
        rows: Rows to prune by.
    """
    batches = [{name: row[name][None] for name in ("input_ids", "attention_mask")} for row in rows]
    with Peak() as peak:
        nxm_hf.prune(model, "2:4", method, batches)
    return peak.most


def prune_in_training(model: LlamaForCausalLM, rows: list[dict[str, Tensor]]) -> int:
    """Train a sharded model with `admm`, and return the most bytes of the step that prunes, beside what is held.

    Args:
        model: The model.
        rows: The training data, and the rows to prune by.
    """
    optimizer, config = torch.optim.AdamW(model.parameters(), lr=1e-4), config_of_training()
    loader: DataLoader = DataLoader(rows, batch_size=1)  # type: ignore[arg-type]  # a list is a dataset
    engine, most = Engine(Plan.of(model, config), optimizer, config, STEPS, train_dataloader=loader), 0
    for number, batch in zip(range(STEPS), loader, strict=False):
        model(**batch).loss.backward()
        phase = engine.phase
        with Peak() as peak:
            optimizer.step()
        if (phase, engine.phase) == ("recipe", "settle"):
            most = peak.most
        if number < STEPS - 1:  # gradients are a part of what is planned
            optimizer.zero_grad(set_to_none=False)
    assert most, "no step has pruned"
    return most


def config_of_training() -> NxMConfig:
    """Return `admm` with the pruning of its defaults."""
    return NxMConfig("admm", settings={"rho": 0.01, "scores": "alps"}, settle=0.5)


def measure(rank: int, row: str, given: argparse.Namespace, folder: str) -> None:
    """Measure in one process of a group; each leaves its numbers in a file of the folder where they meet.

    Args:
        rank: The number of the process.
        row: The row of the table.
        given: The settings of the command line.
        folder: The folder.
    """
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=given.processes)
    try:
        tiny = argparse.Namespace(**{**vars(given), "width": 64})  # loads and compiles code, which is not counted
        for sizes in (tiny, given):
            model, rows = make_model(sizes), make_rows(sizes)
            for _, block in find_blocks(model):
                fully_shard(block)
            fully_shard(model)
            dist.barrier()
            most = prune_in_training(model, rows) if row == TRAINED else prune_alone(row, model, rows)
        Path(folder, f"{rank}.json").write_text(json.dumps(most))
    finally:
        dist.destroy_process_group()


def planned(row: str, given: argparse.Namespace) -> int:
    """Return the bytes that the first process is planned to hold.

    Args:
        row: The row of the table.
        given: The settings of the command line.
    """
    with torch.device("meta"):
        model = make_model(given)
    plan = training_memory(model, config_of_training(), given.processes)
    return plan.total - plan.deployed if row == TRAINED else plan.weights


def main() -> None:
    """Print each row of the table as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", nargs="+", choices=ROWS, default=ROWS, help="what to measure")
    for name, default in dict(processes=2, blocks=12, width=512, vocabulary=2048, rows=32, tokens=64).items():
        parser.add_argument(f"--{name}", type=int, default=default, help="(%(default)s)")
    given = parser.parse_args()
    print("| MiB | planned | most beside |\n|---|--:|--:|")
    for row in given.row:
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.spawn(measure, (row, given, folder), nprocs=given.processes)
            found = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(given.processes)]
        most = " and ".join(f"{each / 2**20:.0f}" for each in found)
        print(f"| {row} | {planned(row, given) / 2**20:.0f} | {most} |", flush=True)


if __name__ == "__main__":
    main()
