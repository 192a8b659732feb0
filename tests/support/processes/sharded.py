"""The program of the tests of FSDP2: it forks groups of processes, which train in turn, and writes their facts.

Run as `-m ... FOLDER`. Process r of a group of n leaves `FOLDER/facts-n-r.json`. The groups are forked after the
imports, which take longer than a training.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import ParallelismConfig, PartialState
from accelerate.state import DistributedType
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import RowwiseParallel, parallelize_module
from transformers import Trainer, TrainerCallback

import nxm_hf
from nxm_hf import NxMCallback, NxMConfig, NxMTrainer, attach
from nxm_hf.engine.sharded_state import gather_optimizer
from nxm_hf.layers.sharding import local, part_sizes, whole
from nxm_hf.storage.state_file import fingerprint
from nxm_hf.storage.verify import verify_targets
from tests.support.custom_methods import Shrinking
from tests.support.models import make_arguments, make_bert, make_model, make_rows, spare_imports
from tests.support.sharded_loops import MAKE, Uneven, bytes_of, config_of, loop, loss_of
from tests.support.training import engine_of, without_times

# Recipes whose verbs treat entries, or groups of a row, apart from all others.
BY_GROUP = [
    "asp", "ste", "sr-ste", "fix", "reset", "regularize", "mask-decay", "structure-decay", "admm", "gradual", "acdc",
]  # fmt: skip
FEW = ["asp", "sr-ste", "admm"]
LIMIT = timedelta(seconds=60)
LAYERS = {"transformer_layer_cls_to_wrap": ["BertLayer"]}  # by default accelerate 1.15 shards BERT's embeddings twice


class Watch(TrainerCallback):
    """Records, after every step, fingerprints of this process's rows of all weights, and of those behind a mask."""

    def __init__(self):
        self.trainer, self.steps, self.evaluated, self.sharded = None, [], [], []

    def on_step_end(self, args, state, control, model, **kwargs):
        trained = {target.name: weight for target, weight in engine_of(self.trainer).trained_weights()}
        sharded = all(isinstance(p, DTensor) for p in model.parameters())
        self.sharded.append(sharded)
        rows = [rows_of(tensors, sharded) for tensors in (dict(model.named_parameters()), trained)]
        self.steps.append([fingerprint(part.items()) for part in rows])

    def on_save(self, args, state, control, **kwargs):
        if args.process_index == 0:  # what Trainer does in one process alone, when it pushes a checkpoint
            self.trainer.callback_handler.on_push_begin(args, state, control)

    def on_prediction_step(self, args, state, control, model, **kwargs):
        self.evaluated.append(nxm_hf.verify(model, "2:4").ok)


def rows_of(tensors: dict[str, torch.Tensor], sharded: bool) -> dict[str, torch.Tensor]:
    """Return what this process has of sharded tensors, or what it would have of whole ones."""
    processes, rank = dist.get_world_size(), dist.get_rank()
    if sharded:
        return {name: local(tensor.detach()) for name, tensor in tensors.items()}
    return {name: tensor.detach().split(part_sizes(len(tensor), processes))[rank] for name, tensor in tensors.items()}


def train(
    folder: Path, config, fsdp: dict | None, resume=None, dropout=0.0, rows=None, kind="NxMTrainer", **changes
) -> dict:
    """Train with DDP, or with FSDP2 if it is given settings, and return what is compared."""
    words = dict(max_steps=12, save_steps=6, per_device_train_batch_size=4, max_grad_norm=0, logging_steps=2)
    os.environ.pop("ACCELERATE_USE_FSDP", None)  # of a training before
    args = make_arguments(folder, **{**words, **changes, "fsdp": fsdp is not None, "fsdp_config": fsdp})
    if fsdp is not None:  # accelerate shards over GPUs only, unless it takes these processes for some
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    watch, rows = Watch(), rows or make_rows(32)
    model = make_bert(hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    torch.manual_seed(1)
    data = dict(train_dataset=rows, eval_dataset=rows[:16])
    if kind == "NxMTrainer":
        trainer = NxMTrainer(model, args, **data, sparsity=config, callbacks=[watch])
    else:
        trainer = Trainer(model, args, **data, callbacks=[watch, NxMCallback(config, resume_from=resume)])
    watch.trainer = trainer
    trainer.train(resume_from_checkpoint=resume and str(resume))
    if "eval_steps" in changes:
        trainer.save_model(str(folder / "final"))
        if dist.get_rank() == 0:
            trainer.create_model_card()
    return {
        "steps": watch.steps,
        "sharded": watch.sharded,
        "evaluated": watch.evaluated,
        "weights": fingerprint(trainer.model.named_parameters()),
        "ok": nxm_hf.verify(trainer.model, "2:4").ok,
        "best": trainer.state.best_model_checkpoint,
        "records": without_times(trainer.state.log_history[:-1]),
    }


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
        facts[kind]["ok"] = engine.verification.ok
        facts[kind]["weights"] = fingerprint(model.named_parameters())
    return facts


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
    for name, config, model in (
        ("rigl", "rigl", "uneven"),
        ("tiles", NxMConfig("ste", "2:4-transposable", exclude="back", on_indivisible="skip"), "gpt2"),
        ("unstructured", NxMConfig("ste", "unstructured:0.5"), "uneven"),
        ("alps", NxMConfig("asp", settings={"scores": "alps"}, warmup=0.5, exclude="back"), "uneven"),
        ("cut groups", NxMConfig("ste", "16:32"), "gpt2"),
        ("custom", NxMConfig(Shrinking()), "gpt2"),
    ):
        try:
            loop(MAKE[model](), NxMConfig.from_any(config).replace(exclude="back" if model == "uneven" else None), True)
        except ValueError as error:
            facts[name] = str(error)
    mesh = init_device_mesh("cpu", (2,))
    for name, act in (
        ("prune", lambda: nxm_hf.prune(fully_shard(Uneven()), exclude="back")),
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


GROUPS: dict[int, dict[Callable, list[tuple[str, ...]]]] = {
    2: {
        equal: [(recipe,) for recipe in BY_GROUP],
        crossed: [(recipe,) for recipe in FEW],
        best: [(recipe,) for recipe in FEW],
        called_back: [("admm",)],
        looped: [(recipe, name) for recipe in FEW for name in MAKE],
        measured: [()],
        broken: [()],
        refused: [()],
    },
    3: {loaded: [(recipe,) for recipe in FEW]},
    4: {hybrid: [(recipe,) for recipe in FEW], launched: [("sr-ste",)]},
}


def work(rank: int, processes: int, root: Path) -> None:
    """Do the checks of a group in one of its processes, up to the first error."""
    torch.set_num_threads(1)
    spare_imports()
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="1", ACCELERATE_USE_CPU="true")  # the group is made below
    store = dist.FileStore(str(root / f"store-{processes}"), processes)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=processes, timeout=LIMIT)
    facts = {}
    try:
        for check, cases in GROUPS[processes].items():
            for case in cases:
                facts["/".join((check.__name__, *case))] = check(root.joinpath(check.__name__, *case), *case)
    except Exception:
        facts["error"] = traceback.format_exc()
    (root / f"facts-{processes}-{rank}.json").write_text(json.dumps(facts))
    sys.stdout.flush()
    os._exit("error" in facts)  # at a normal exit, gloo's threads sometimes abort a process that has done all its work


def main(folder: str) -> None:
    """Fork the groups of processes, one group after the other."""
    for processes in GROUPS:
        children = []
        for rank in range(processes):
            if not (child := os.fork()):
                work(rank, processes, Path(folder))
            children.append(child)
        if any(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children):
            sys.exit(f"a process of {processes} failed")


if __name__ == "__main__":
    main(*sys.argv[1:])
