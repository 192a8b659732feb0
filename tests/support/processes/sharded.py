"""The program of the tests of training with FSDP2: groups of processes train in turn. Run it as `-m ... FOLDER`."""

import functools
import itertools
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from accelerate import ParallelismConfig
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import RowwiseParallel, parallelize_module
from transformers import BertForSequenceClassification, Trainer, TrainerCallback

from nxm_hf import NxMConfig, attach
from nxm_hf.engine.sharded_state import gather_optimizer
from nxm_hf.layers import weight_part
from nxm_hf.layers.histogram_threshold import keep_highest_of_all
from nxm_hf.layers.sharding import Shards, local, part_sizes, whole
from nxm_hf.solvers.unstructured_threshold import keep_highest
from nxm_hf.storage.checkpoints import newest_complete
from nxm_hf.storage.state_file import fingerprint
from nxm_hf.storage.verify import verify_targets
from tests.support.custom_methods import Shrinking
from tests.support.forked_groups import Groups, main
from tests.support.grids import SPARSE
from tests.support.model_types import MIXTURES
from tests.support.models import make_model, make_rows
from tests.support.saving import lose_a_bit
from tests.support.sharded_loops import ACROSS, MAKE, MIXTURE, Uneven, bytes_of, config_of, loop, loss_of
from tests.support.sharded_modes import MODES, modes
from tests.support.sharded_trainings import LAYERS, train

FEW = ["asp", "sr-ste", "admm"]
RESUMED = [*FEW, "set"]


def equal(folder: Path, recipe: str) -> dict:
    """Train a recipe with DDP and with FSDP2."""
    kinds = {"ddp": None, "fsdp": LAYERS}
    return {kind: train(folder / kind, config_of(recipe), fsdp) for kind, fsdp in kinds.items()}


def crossed(folder: Path, recipe: str) -> dict:
    """Resume with FSDP2 what DDP began, and with DDP what FSDP2 began."""
    begun = folder.parents[1] / "equal" / recipe
    return {
        "ddp": train(folder / "ddp", config_of(recipe), None, begun / "fsdp" / "checkpoint-6"),
        "fsdp": train(folder / "fsdp", config_of(recipe), LAYERS, begun / "ddp" / "checkpoint-6"),
    }


def best(folder: Path, recipe: str) -> dict:
    """Train with evaluations, after which the root's weights stay whole, and end with the best checkpoint."""
    words = dict(max_steps=6, save_steps=2, eval_steps=2, eval_strategy="steps", load_best_model_at_end=True)
    words |= dict(greater_is_better=True, gradient_accumulation_steps=2)  # of the loss, so that it is not the last
    settings = {**LAYERS, "reshard_after_forward": False, "state_dict_type": "SHARDED_STATE_DICT"}
    kinds = {"ddp": None, "fsdp": settings}
    return {kind: train(folder / kind, config_of(recipe), fsdp, dropout=0.1, **words) for kind, fsdp in kinds.items()}


def called_back(folder: Path, recipe: str) -> dict:
    """Train with NxMCallback in a plain Trainer, and end with the first of two checkpoints; then resume from it."""
    words = dict(kind="NxMCallback", eval_steps=6, eval_strategy="steps", load_best_model_at_end=True)
    words["greater_is_better"] = True  # of the loss
    sharded = {**LAYERS, "state_dict_type": "SHARDED_STATE_DICT"}
    kinds = {"ddp": (None, None), "fsdp": (sharded, None), "resumed": (sharded, folder / "fsdp" / "checkpoint-6")}
    return {kind: train(folder / kind, config_of(recipe), *how, **words) for kind, how in kinds.items()}


def lost(folder: Path, kind: str) -> list[str]:
    """Train with NxMCallback in a plain Trainer, lose a bit of a save, and return the errors of this process."""
    name = {"pruned": "layer.1.output.dense.weight", "other": "word_embeddings.weight", "nothing": "no"}[kind]
    errors = []

    def save(trainer: Trainer) -> None:
        try:
            trainer.save_model(str(folder / "end"))
        except RuntimeError as error:
            errors.append(str(error))

    with pytest.MonkeyPatch.context() as monkeypatch:
        lose_a_bit(monkeypatch, BertForSequenceClassification, "save_pretrained", name)
        train(folder, config_of("asp"), LAYERS, kind="NxMCallback", end=save, max_steps=2, save_strategy="no")
    return errors


def mixed(folder: Path) -> dict:
    """Train a mixture of experts with DDP, and resume from the middle with FSDP2."""
    words = dict(rows=next(kind for kind in MIXTURES if kind.name == "mixtral").rows(32), max_steps=4, save_steps=2)
    layers, middle = {"transformer_layer_cls_to_wrap": ["MixtralDecoderLayer"]}, folder / "ddp" / "checkpoint-2"
    kinds = {"ddp": (None, None), "fsdp": (layers, middle)}
    return {
        kind: train(folder / kind, config_of("admm"), *how, model=MIXTURE["mixtral"](), **words)
        for kind, how in kinds.items()
    }


def tied(folder: Path) -> dict:
    """Train a model with tied embeddings with DDP and with FSDP2."""
    ids = [{"input_ids": torch.arange(8) + row, "labels": torch.arange(8) + row} for row in range(16)]
    words, layers = dict(rows=ids, max_steps=2, save_steps=2), {"transformer_layer_cls_to_wrap": ["GPT2Block"]}
    kinds = {"ddp": None, "fsdp": layers}
    return {
        kind: train(folder / kind, config_of("asp"), fsdp, model=make_model("gpt2"), **words)
        for kind, fsdp in kinds.items()
    }


def looped(folder: Path, recipe: str, name: str) -> dict:
    """Train in a custom loop with whole weights and with sharded ones, and keep the state of both."""
    folder.mkdir(parents=True, exist_ok=True)
    config, facts = config_of(recipe).replace(settle=0.0, exclude="back" if name == "uneven" else None), {}
    for kind in ("whole", "sharded"):
        model, engine, counts = loop(MAKE[name](), config, kind == "sharded")
        state = engine.state_dict()
        facts[kind] = {"state": fingerprint(state.items()), "metrics": engine.metrics(), "counts": counts}
        if dist.get_rank() == 0:
            save_file({name: t.contiguous() for name, t in state.items()}, folder / f"{kind}.safetensors")
        facts[kind]["bytes"] = bytes_of(model, engine)
        with engine.deployed():
            facts[kind]["loss"] = loss_of(model, 0).item()  # the root's weights are left whole
            facts[kind]["ok"] = verify_targets(engine.plan.targets).ok
        facts[kind]["back"] = fingerprint(engine.state_dict().items())
        engine.finish()
        facts[kind]["weights"] = fingerprint(model.named_parameters())
    facts["rows"] = min(len(local(p)) for p in model.parameters())
    return facts


def measured(folder: Path) -> dict:
    """Train with a measured rho, which hangs on the order in which squares are added up."""
    config, ends, rhos = NxMConfig("admm", settings={"scores": "fisher"}), [], []
    for shard in (False, True):
        model, engine, counts = loop(make_model("gpt2"), config, shard, steps=4)
        rhos.append(torch.stack([t for name, t in engine.state_dict().items() if name.endswith("/rho")]))
        ends.append(torch.cat([whole(p.detach()).flatten() for p in model.parameters()]))
    apart = {"rho": float((rhos[0] / rhos[1] - 1).abs().max()), "weights": float((ends[0] - ends[1]).abs().max())}
    return {**apart, "counts": counts, "layers": len(rhos[0])}


def measured_exactly(folder: Path) -> dict:
    """Train with a rho that is measured by counts of groups, which no order of sums changes."""
    config, facts = NxMConfig("admm", settings={"rho": "quantile"}), {}
    for kind in ("whole", "sharded"):
        _, engine, counts = loop(make_model("gpt2"), config, kind == "sharded", steps=22, total=22)
        state = engine.state_dict()
        facts[kind] = fingerprint(state.items())
        facts["counts"] = counts
        facts["rho"] = min(float(t) for name, t in state.items() if name.endswith("/rho"))
    return facts


def hybrid(folder: Path, recipe: str) -> dict:
    """Train in two sets of two processes, and in each set by itself, which then takes the batches of both.

    The gradients of the four batches are added up in the same order.
    """
    mesh, facts = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard")), {}
    pair = mesh["shard"].get_local_rank()
    for kind, over, batches in (
        ("sets", mesh, [dist.get_rank()]),
        ("set", mesh["shard"], [2 * pair, 2 * pair + 1]),
    ):
        config = config_of(recipe).replace(settle=0.0, exclude="back")
        model, engine, counts = loop(Uneven(), config, True, mesh=over, batches=batches, of=4)
        state = engine.state_dict()
        facts[kind] = {"state": fingerprint(state.items()), "metrics": engine.metrics(), "counts": counts}
        optimizer = gather_optimizer(engine.optimizer, keep=True)
        moments = {f"{i}/{name}": t for i, state in optimizer["state"].items() for name, t in state.items()}
        facts[kind]["moments"] = fingerprint(moments.items())
        engine.load_state_dict(state)
        engine.finish()
        facts[kind]["ok"], facts[kind]["density"] = engine.verification.ok, engine.verification.density
        facts[kind]["weights"] = fingerprint(model.named_parameters())
    return facts


def across(folder: Path, recipe: str, pattern: str, name: str) -> dict:
    """Train with a pattern or a recipe that looks at the whole weight, with whole weights and with sharded ones."""
    back = "back" if name == "uneven" and not pattern.startswith("unstructured") else None
    config, facts = config_of(recipe, pattern=pattern, warmup=0.0, settle=0.4, exclude=back), {}
    if pattern == "8:16-transposable":  # it takes long to solve
        config = config.replace(include="query")
    weight_part.GATHERED = 0 if name == "uneven" else 2**20
    for kind in ("sharded", "whole")[: 2 if dist.get_rank() == 0 else 1]:
        make = {**MAKE, **MIXTURE}.get(name, lambda: make_model(name))
        model, engine, counts = loop(make(), config, kind == "sharded", steps=5, total=5)
        state = engine.state_dict()
        facts[kind] = {"state": fingerprint(state.items()), "metrics": engine.metrics(), "counts": counts}
        facts[kind]["pruned"] = len(engine.plan.targets)
        with engine.deployed():
            facts[kind]["loss"] = loss_of(model, 0).item()
            facts[kind]["ok"] = engine.verification.ok and engine.verification.density < 1
        engine.load_state_dict(state)
        engine.finish()
        facts[kind]["weights"] = fingerprint(model.named_parameters())
    return facts


def selected(folder: Path) -> dict:
    """Select the highest of scores in parts, of which the last process may have none; return what was right."""
    shards, facts = Shards(nn.Module(), init_device_mesh("cpu", (dist.get_world_size(),))), {}
    for rows, dtype, levels in itertools.product((4, 31), (torch.float32, torch.bfloat16, torch.float64), (0, 1, 50)):
        scores = torch.randn(rows, 40, generator=torch.Generator().manual_seed(rows), dtype=torch.float64)
        scores = ((scores * levels).round() / levels if levels else scores).to(dtype)  # with many equal ones, and -0.0
        parts = functools.partial(torch.split, split_size_or_sections=part_sizes(rows, shards.processes))
        for count in (1, 20 * rows, 40 * rows - 1, 40 * rows):
            expected = keep_highest(scores.flatten(), count).view(scores.shape)
            with CommDebugMode() as communication:
                mask = keep_highest_of_all(parts(scores)[shards.rank], count, shards)
            right = torch.equal(mask, parts(expected)[shards.rank])
            facts[f"{rows} {dtype} {levels} {count}"] = [right, communication.get_total_counts()]
    part = torch.full((2, 4), torch.nan if shards.rank == 1 else 0.0)
    try:
        keep_highest_of_all(part, 3, shards)
    except ValueError as error:
        facts["nan"] = str(error)
    return facts


class DieInStep(TrainerCallback):
    """Kills the process between the gradients and the step, when 5 steps are done."""

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == 5:
            os.kill(os.getpid(), signal.SIGKILL)


def die_in_save(trainer: Trainer) -> None:
    """Have the process killed in the save of step 8, between the model and the state of the optimizer."""
    save = trainer._save_optimizer_and_scheduler

    def save_or_die(folder: str) -> None:
        if trainer.state.global_step == 8:
            os.kill(os.getpid(), signal.SIGKILL)
        save(folder)

    trainer._save_optimizer_and_scheduler = save_or_die


def step(folder: Path) -> dict:
    """Train until the first of the processes is killed in a step."""
    prepare = {0: lambda trainer: trainer.add_callback(DieInStep())}.get(dist.get_rank(), id)
    return train(folder, config_of("sr-ste"), LAYERS, prepare=prepare, save_steps=4)


def revived(folder: Path, death: str) -> dict:
    """Resume after such a death in another number of processes."""
    begun = folder.parents[1] / death
    dist.barrier()
    newest = newest_complete(begun)
    return {"newest": Path(newest).name, **train(begun, config_of("sr-ste"), LAYERS, newest, save_steps=4)}


def launched(folder: Path, recipe: str) -> dict:
    """Train with Trainer's hybrid sharding and with DDP. All rows are equal, so that no order of sums matters."""
    rows, sets = make_rows(1) * 32, ParallelismConfig(dp_replicate_size=2, dp_shard_size=2)
    words = {"ddp": {"fsdp": None}, "hybrid": {"fsdp": LAYERS, "parallelism_config": sets}}
    return {kind: train(folder / kind, config_of(recipe), rows=rows, **changes) for kind, changes in words.items()}


def loaded(folder: Path, recipe: str) -> dict:
    """Load the state that two processes left, in another number of processes; return that of this engine."""
    begun = load_file(folder.parents[1] / "looped" / recipe / "uneven" / "sharded.safetensors")
    config = config_of(recipe).replace(settle=0.0, exclude="back")
    _, engine, _ = loop(Uneven(), config, shard=dist.get_world_size() > 1, state=begun, steps=0)
    state = engine.state_dict()
    return {"state": fingerprint(state.items()), "same": all(torch.equal(state[name], begun[name]) for name in begun)}


def broken(folder: Path) -> dict:
    """Break the weights of the second process alone, and return what every process finds."""
    config, facts = config_of("asp").replace(exclude="back", warmup=0.0), {}
    model, engine, _ = loop(Uneven(), config, True, steps=1)
    if dist.get_rank() == 1:
        with torch.no_grad():
            local(model.layers[0].five.weight).fill_(-0.0)
            local(model.layers[1].three.weight).fill_(1.0)
    found = verify_targets(engine.plan.targets)
    facts["found"] = [[layer.nonzeros, layer.violations, layer.negative_zeros] for layer in found.layers]
    if dist.get_rank() == 1:
        with torch.no_grad():
            local(model.layers[1].three.weight).fill_(torch.nan)
    engine.release()
    try:
        attach(model, torch.optim.SGD(model.parameters()), config, total_steps=1)
    except ValueError as error:
        facts["nan"] = str(error)
    return facts


def refused(folder: Path) -> dict:
    """Return the errors of what needs whole weights."""
    facts = {}
    mesh = init_device_mesh("cpu", (2,))
    for name, act in (
        ("custom", lambda: loop(make_model("gpt2"), NxMConfig(Shrinking()), True)),
        (
            "tensors",
            lambda: attach_to(parallelize_module(Uneven(), mesh, {"layers.0.back": RowwiseParallel()})),
        ),
        ("columns", lambda: attach_to(fully_shard(Uneven(), shard_placement_fn=rows_of_eight))),
    ):
        try:
            act()
        except ValueError as error:
            facts[name] = str(error)
    return facts


def rows_of_eight(parameter: nn.Parameter) -> Shard | None:
    """Have the matrices that are pruned sharded by columns."""
    return Shard(1) if parameter.shape[1:] == (8,) else None


def attach_to(model: nn.Module) -> None:
    """Attach to a model that is spread over processes in some way."""
    attach(model, torch.optim.SGD(model.parameters()), NxMConfig("asp", exclude="back"), total_steps=1)


GROUPS: Groups = {
    "2": (
        2,
        {
            equal: [(recipe,) for recipe in SPARSE],
            crossed: [(recipe,) for recipe in RESUMED],
            best: [(recipe,) for recipe in FEW],
            called_back: [("admm",)],
            lost: [("pruned",), ("other",), ("nothing",)],
            mixed: [()],
            tied: [()],
            looped: [(recipe, name) for recipe in FEW for name in MAKE],
            measured: [()],
            measured_exactly: [()],
            modes: [(mode,) for mode in MODES],
            broken: [()],
            refused: [()],
        },
    ),
    "3": (3, {loaded: [(recipe,) for recipe in FEW], selected: [()]}),
    "4": (4, {across: [case[:3] for case in ACROSS], hybrid: [(recipe,) for recipe in FEW], launched: [("sr-ste",)]}),
    "step": (3, {step: [()]}),  # one of them dies
    "revived": (2, {revived: [("step",)]}),
}


if __name__ == "__main__":
    main(GROUPS, sys.argv[1], failing=("step",))
