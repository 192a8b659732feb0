"""The cost of a recipe while training: CPU time over plain steps and over a plain Trainer, and memory over the weights.

    python benchmarks/overhead.py --model path/to/all-MiniLM-L6-v2 --shape 8x64 --steps 30 --json overhead.json
    python benchmarks/overhead.py --recipe asp "ste refresh=10" "admm settle=0.9" --precision bf16 --profile --trainer
    python benchmarks/overhead.py --shape 1x8 --precision fp32 --recipe asp ste "admm scores=fisher" --fsdp

Two copies of a model take steps in turn on the same batch, so other load on the machine slows both alike. One is plain,
with torch's fused AdamW. The other is attached to an engine, with `nxm_hf.AdamW` as in `NxMTrainer`. A step is forward,
backward, clipping, `optimizer.step()` and `zero_grad()`; nothing is logged. `bert-base` and `llama-0.1b` are made by
config, with random weights; anything else is loaded with `from_pretrained`.

All times are CPU time of the process, and medians. Beside each row stands its floor: what the optimizer itself takes,
and one pass of `torch.abs(out=)` over the pruned weights. "over plain" is (plain + what step() takes more) / plain.

With `--fsdp` two processes of gloo train, and FSDP2 shards both copies block by block, as Trainer does. Times and
bytes are those of the first process, and its part of the weights.
"""

import argparse
import gc
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.profiler import ProfilerActivity, profile
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import nxm_hf
from nxm_hf import NxMConfig, recipes
from nxm_hf.layers.modules import find_blocks
from nxm_hf.layers.sharding import local

Row = dict[str, Any]
# The columns of the table, as in the records of the JSON file, and how each is written.
COLUMNS: dict[str, str] = {
    "model": "{}",
    "shape": "{}",
    "precision": "{}",
    "recipe": "{}",
    "plain ms": "{:.1f}",
    "with ms": "{:.1f}",
    "optimizer ms": "{:.1f}",
    "abs ms": "{:.1f}",
    "step() more ms": "{:+.1f}",
    "over plain": "{:.3f}",
    "state": "{:.2f}x",
    "deployed": "{:.2f}x",
    "metrics() ms": "{:.1f}",
    "Trainer": "{:.3f}",
}
WARMUP = 3  # steps that are not counted
PROCESSES = 2  # that share the weights under FSDP2


def load(name: str) -> PreTrainedModel:
    """Return the model of a directory, or one of random weights.

    Args:
        name: The directory, or "bert-base", or "llama-0.1b": 110 M parameters, of which 85 M are pruned.
    """
    head: dict[str, Any] = {"num_labels": 2, "problem_type": "single_label_classification"}
    if name == "bert-base":
        return BertForSequenceClassification(BertConfig(**head))
    if name == "llama-0.1b":
        sizes: dict[str, Any] = dict(
            hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12
        )
        return LlamaForSequenceClassification(LlamaConfig(**sizes, pad_token_id=0, **head))
    return AutoModelForSequenceClassification.from_pretrained(name, dtype=torch.float32, **head)


def config_of(text: str) -> NxMConfig:
    """Return the config of a recipe with settings.

    Args:
        text: The name of the recipe, then settings, such as "ste refresh=10 settle=0.5 pattern=1:4".
    """
    name, *words = text.split()
    pairs = {key: value for key, _, value in (word.partition("=") for word in words)}
    windows: dict[str, Any] = {key: float(pairs.pop(key)) for key in ("warmup", "settle") if key in pairs}
    pattern = pairs.pop("pattern", "2:4")
    return NxMConfig(name, pattern, settings={key: _value(value) for key, value in pairs.items()}, **windows)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def make_batch(model: PreTrainedModel, shape: str) -> dict[str, torch.Tensor]:
    """Return random tokens with labels.

    Args:
        model: The model, for its vocabulary.
        shape: Rows and tokens, such as 16x128.
    """
    rows, length = map(int, shape.split("x"))
    ids = torch.randint(0, model.config.vocab_size, (rows, length))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(rows) % 2}


class Side:
    """A model and its optimizer, in a plain training loop; in a group of processes, the model is sharded."""

    def __init__(self, model: nn.Module, bf16: bool, optimizer: type[torch.optim.AdamW] = torch.optim.AdamW):
        self.model, self.bf16 = model.train(), bf16
        if dist.is_initialized():
            mesh = init_device_mesh("cpu", (dist.get_world_size(),))
            for _, block in find_blocks(model):
                fully_shard(block, mesh=mesh)
            fully_shard(model, mesh=mesh)
        self.optimizer = optimizer(model.parameters(), lr=2e-5, weight_decay=0.01, fused=True)

    def step(self, batch: dict[str, torch.Tensor]) -> tuple[float, float]:
        """Take a training step.

        Args:
            batch: The inputs and labels.

        Returns:
            The CPU seconds of the whole step, and of `optimizer.step()` alone.
        """
        begin = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            loss = self.model(**batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        stepping = time.process_time()
        self.optimizer.step()
        stepped = time.process_time()
        self.optimizer.zero_grad()
        return time.process_time() - begin, stepped - stepping


def in_turns(sides: list[Side], batch: dict[str, torch.Tensor], steps: int) -> list[list[tuple[float, float]]]:
    """Return the times of each side's steps.

    Args:
        sides: Two models; the one that goes first changes from step to step.
        batch: The inputs and labels.
        steps: How many steps count.
    """
    times: list[list[tuple[float, float]]] = [[] for _ in sides]
    for number in range(WARMUP + steps):
        for i in (0, 1) if number % 2 else (1, 0):
            times[i].append(sides[i].step(batch))
    return [side[WARMUP:] for side in times]


def live_bytes() -> int:
    """Return the bytes of all tensors in the reach of Python: shared memory once, and this part of sharded ones."""
    gc.collect()
    tensors = [x for x in gc.get_objects() if issubclass(type(x), Tensor) and not issubclass(type(x), DTensor)]
    storages = [x.untyped_storage() for x in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def median_time(act: Callable[[], object], times: int = 7) -> float:
    """Return the median CPU seconds of a call.

    Args:
        act: What to call.
        times: How often.
    """
    seconds = []
    for _ in range(times):
        begin = time.process_time()
        act()
        seconds.append(time.process_time() - begin)
    return statistics.median(seconds)


def floor(weights: Sequence[Tensor]) -> float:
    """Return the CPU seconds of one pass over some weights: each is read once, and written once elsewhere.

    Args:
        weights: The weights.
    """
    outs = [torch.empty_like(weight) for weight in weights]
    return median_time(lambda: [torch.abs(weight, out=out) for weight, out in zip(weights, outs, strict=True)])


def measure(model: PreTrainedModel, shape: str, precision: str, recipe: str, options: argparse.Namespace) -> Row:
    """Return a row of the table, without the name of the model.

    Args:
        model: The model.
        shape: The shape of a batch.
        precision: "fp32" or "bf16".
        recipe: The recipe, with its settings.
        options: The options of the command line.
    """
    plain = Side(deepcopy(model), precision == "bf16")
    sparse = Side(deepcopy(model), precision == "bf16", nxm_hf.AdamW)
    batch, total = make_batch(model, shape), WARMUP + options.steps
    before = live_bytes()
    engine = nxm_hf.attach(sparse.model, sparse.optimizer, config_of(recipe), total_steps=total + WARMUP)
    state = live_bytes() - before
    with engine.deployed():
        deployed = live_bytes() - before
    weights = [local(target.layer.weight.detach()) for target in engine.plan.targets]
    size = sum(weight.nbytes for weight in weights)
    times = in_turns([plain, sparse], batch, options.steps)
    (plain_step, plain_optimizer), (sparse_step, sparse_optimizer) = (
        [statistics.median(column) for column in zip(*side, strict=True)] for side in times
    )
    more = sparse_optimizer - plain_optimizer
    if options.profile:
        print_profile(sparse, batch)
    return {
        "shape": shape,
        "precision": precision,
        "recipe": recipe,
        "plain ms": plain_step * 1e3,
        "with ms": sparse_step * 1e3,
        "optimizer ms": plain_optimizer * 1e3,
        "abs ms": floor(weights) * 1e3,
        "step() more ms": more * 1e3,
        "over plain": 1 + more / plain_step,
        "state": state / size if size else None,
        "deployed": deployed / size if size else None,
        "metrics() ms": median_time(engine.metrics) * 1e3,
        "Trainer": through_trainers(model, batch, precision, recipe, options) if options.trainer else None,
    }


def written(row: Row) -> str:
    """Return a row of the table as text.

    Args:
        row: The row.
    """
    cells = ("-" if row[name] is None else form.format(row[name]) for name, form in COLUMNS.items())
    return "| " + " | ".join(cells) + " |"


def print_profile(side: Side, batch: dict[str, torch.Tensor]) -> None:
    """Print where the time of one `optimizer.step()` with its hooks goes.

    Args:
        side: The model and its optimizer.
        batch: The inputs and labels.
    """
    step, profiler = side.optimizer.step, profile(activities=[ProfilerActivity.CPU])

    def profiled() -> None:
        with profiler:
            step()

    side.optimizer.step = profiled  # type: ignore[method-assign, assignment]  # for one step
    try:
        side.step(batch)
    finally:
        side.optimizer.step = step  # type: ignore[method-assign]
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=40))


class StepTimes(TrainerCallback):
    """Records the CPU seconds of each training step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.begin = time.process_time()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.times.append(time.process_time() - self.begin)


def through_trainers(
    model: PreTrainedModel, batch: dict[str, torch.Tensor], precision: str, recipe: str, options: argparse.Namespace
) -> float:
    """Return the time of a step of NxMTrainer over that of Trainer, which train in turns.

    Args:
        model: The model.
        batch: Its rows are the training data.
        precision: "fp32" or "bf16".
        recipe: The recipe.
        options: The options of the command line.
    """
    rows = [{name: values[i] for name, values in batch.items()} for i in range(len(batch["labels"]))]
    times: dict[bool, list[float]] = {True: [], False: []}
    for ours in (True, False, False, True):
        watch = StepTimes()
        with tempfile.TemporaryDirectory() as folder:
            words: dict[str, Any] = dict(max_steps=WARMUP + options.steps // 2, save_strategy="no", use_cpu=True)
            words |= dict(bf16=precision == "bf16", disable_tqdm=True, logging_steps=10**6)
            arguments = TrainingArguments(folder, per_device_train_batch_size=len(rows), **words)
            kwargs: dict[str, Any] = {"model": deepcopy(model), "args": arguments}
            kwargs |= {"train_dataset": rows, "callbacks": [watch]}
            trainer = nxm_hf.NxMTrainer(sparsity=config_of(recipe), **kwargs) if ours else Trainer(**kwargs)
            trainer.train()
        times[ours] += watch.times[WARMUP:]
    return statistics.median(times[True]) / statistics.median(times[False])


def measure_all(options: argparse.Namespace, tell: bool = True) -> list[Row]:
    """Return all rows of the table.

    Args:
        options: The options of the command line.
        tell: Print each row as soon as it is measured.
    """
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rows: list[Row] = []
    for name in options.model or ["bert-base"]:
        model = load(name)
        for shape in options.shape:
            for precision in options.precision:
                for recipe in options.recipe:
                    row = measure(model, shape, precision, recipe, options)
                    rows.append({"model": name.rstrip("/").split("/")[-1], **row})
                    if tell:
                        print(written(rows[-1]), flush=True)
    return rows


def _measure_as_one(rank: int, options: argparse.Namespace, folder: str) -> None:
    """Measure as one process of a group; the first leaves the rows in a file of the folder where they meet."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES)
    try:
        rows = measure_all(options, tell=rank == 0)
        if rank == 0:
            Path(folder, "rows.json").write_text(json.dumps(rows))
    finally:
        dist.destroy_process_group()


def measure_sharded(options: argparse.Namespace) -> list[Row]:
    """Return all rows of the table, measured in two processes that share the weights.

    Args:
        options: As for `measure_all`.
    """
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_measure_as_one, (options, folder), nprocs=PROCESSES)
        rows: list[Row] = json.loads(Path(folder, "rows.json").read_text())
    return rows


def parse() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", action="append", help='directory of a model, "bert-base" or "llama-0.1b"; repeat it for more'
    )
    parser.add_argument("--shape", nargs="+", default=["16x128", "8x64"], help="rows x tokens of a batch")
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument(
        "--recipe", nargs="+", default=recipes.names(), help='recipes, each with its settings, as in "ste refresh=10"'
    )
    parser.add_argument("--steps", type=int, default=30, help="steps of each side that count")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the rows and the machine to this file, too")
    parser.add_argument("--trainer", action="store_true", help="measure Trainer and NxMTrainer too")
    parser.add_argument("--profile", action="store_true", help="print where the time of optimizer.step() goes")
    parser.add_argument("--fsdp", action="store_true", help="measure in two processes that share the weights by FSDP2")
    options = parser.parse_args()
    if options.fsdp and (options.trainer or options.profile):
        parser.error("--trainer and --profile measure one process; leave them out, or leave out --fsdp")
    return options


def main() -> None:
    """Print each row of the table as soon as it is measured."""
    options = parse()
    print("| " + " | ".join(COLUMNS) + " |")
    print("|" + "---|" * len(COLUMNS))
    rows = measure_sharded(options) if options.fsdp else measure_all(options)
    if options.json:
        machine = {"processor": platform.machine(), "threads": options.threads, "torch": torch.__version__}
        machine["processes"] = PROCESSES if options.fsdp else 1
        options.json.write_text(json.dumps({"machine": machine, "steps": options.steps, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
