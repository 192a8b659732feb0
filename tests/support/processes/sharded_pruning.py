"""The program of the tests of pruning with FSDP2: groups of processes prune in turn. Run it as `-m ... FOLDER`."""

import logging
import sys
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import Trainer

import nxm_hf
from nxm_hf import NxMConfig
from nxm_hf.layers.modules import find_blocks
from nxm_hf.layers.sharding import whole
from nxm_hf.pruners import Magnitude
from nxm_hf.pruning.block_cache import BlockCache
from nxm_hf.storage.state_file import fingerprint
from tests.support.forked_groups import Groups, main
from tests.support.models import make_batches, make_model
from tests.support.sharded_loops import Uneven
from tests.support.sharded_trainings import LAYERS, train

# A model, a method, a pattern and the number of batches: of one batch, one process has none to read.
PRUNED = [
    ("llama", "alps", "2:4", "5"),
    ("gpt2", "adaprune", "2:4", "3"),  # rows of a weight are inputs, and biases change
    ("t5", "sparsegpt", "1:4", "1"),  # two stacks
    ("albert", "alps", "2:4-transposable", "2"),  # one block is called twice
    ("bert", "wanda", "unstructured:0.5", "2"),
]
SETS = [("llama", "alps", "2:4", "6"), ("gpt2", "sparsegpt", "2:4", "2")]
CONFIGS = {
    "warmup": NxMConfig("asp", settings={"scores": "alps"}, warmup=0.5),
    "settle": NxMConfig("admm", settings={"rho": 0.01, "scores": "sparsegpt", "preview": True}, settle=0.5),
    "default": NxMConfig("admm"),
}


def shard(model: nn.Module, mesh: DeviceMesh | None = None) -> nn.Module:
    """Shard each block of a model, and the model."""
    for _, block in list(find_blocks(model)):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    return model


def whole_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights of a model, which may be sharded. Every process calls this."""
    return {name: whole(parameter.detach()) for name, parameter in model.named_parameters()}


def compared(name: str, method: str, pattern: str, batches: list, mesh: DeviceMesh | None = None, **words) -> dict:
    """Prune a model with sharded weights, and in the first process with whole ones; return how they differ."""
    make = Uneven if name == "uneven" else lambda: make_model(name)
    model = shard(make(), mesh)
    result = nxm_hf.prune(model, pattern, method, batches, **words)
    weights, ok = whole_weights(model), name == "uneven" or nxm_hf.verify(model).ok
    facts = {"weights": fingerprint(weights.items()), "ok": ok, "layers": [asdict(layer) for layer in result.layers]}
    facts["rows"] = min(len(parameter.to_local()) for parameter in model.parameters())
    if dist.get_rank() == 0:
        alone = make()
        expected = nxm_hf.prune(alone, pattern, method, batches, **words)
        others = dict(alone.named_parameters())
        facts["expected"] = [asdict(layer) for layer in expected.layers]
        facts["masks"] = [key for key, weight in weights.items() if not torch.equal(weight != 0, others[key] != 0)]
        facts["apart"] = max(float((weight - others[key]).abs().max()) for key, weight in weights.items())
    return facts


def pruned(folder: Path, name: str, method: str, pattern: str, count: str) -> dict:
    """Prune a model over all processes."""
    return compared(name, method, pattern, make_batches(name, int(count)))


def uneven(folder: Path) -> dict:
    """Prune layers of which some processes have fewer rows, or none; with dense inputs."""
    batches = [{"x": torch.randn(6, 8, generator=torch.Generator().manual_seed(seed))} for seed in range(4)]
    return compared("uneven", "alps", "2:4", batches, exclude="back", inputs="dense")


def alone(folder: Path) -> dict:
    """Prune without calibration data."""
    return compared("llama", "magnitude", "2:4", None)


def sets(folder: Path, name: str, method: str, pattern: str, count: str) -> dict:
    """Prune in two sets of two processes."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    return compared(name, method, pattern, make_batches(name, int(count)), mesh)


def gathers(folder: Path) -> dict:
    """Count what is gathered while four blocks are pruned, and return in what state it leaves the model."""
    torch.manual_seed(0)
    config = type(make_model("llama").config)(**{**make_model("llama").config.to_dict(), "num_hidden_layers": 4})
    model = shard(type(make_model("llama"))(config))
    model.set_reshard_after_forward(False, recurse=False)
    blocks, gathered = list(model.model.layers), [0] * 4

    def count(number: int) -> None:
        gathered[number] += 1

    for number, block in enumerate(blocks):  # after FSDP2's own hook, which gathers
        block.register_forward_pre_hook(lambda *_, number=number: count(number))
    nxm_hf.prune(model, "2:4", "wanda", make_batches("llama", 4))
    states = [module._get_fsdp_state() for module in (model, *blocks)]
    facts = {"gathered": gathered, "idle": [state._training_state.name for state in states]}
    facts["in_forward"] = states[0]._state_ctx.iter_forward_root is not None
    facts["whole"] = [name for name, p in model.named_parameters() if not isinstance(p, DTensor)]
    return facts


def trained(folder: Path, name: str, kind: str) -> dict:
    """Train with DDP and with FSDP2, prune with training data in the middle, and resume before and after that."""
    config, how = CONFIGS[name], dict(kind=kind, save_steps=4)
    facts = {key: train(folder / key, config, fsdp, **how) for key, fsdp in (("ddp", None), ("fsdp", LAYERS))}
    if name != "default":
        for step in (4, 8):
            begun = folder / "fsdp" / f"checkpoint-{step}"
            facts[f"resumed-{step}"] = train(folder / f"resumed-{step}", config, LAYERS, begun, **how)
    return facts


def fail_in_one(trainer: Trainer) -> None:
    """Have the collator of the second process fail where rows are read to prune by: there are eight at a time."""
    collate = trainer.data_collator

    def collate_or_fail(rows: list) -> dict:
        if len(rows) == 8 and dist.get_rank() == 1:
            raise KeyError("no such column")
        return collate(rows)

    trainer.data_collator = collate_or_fail


def fallen_back(folder: Path) -> dict:
    """Train with `admm` where one process cannot read rows, and with the scores that all fall back to."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("nxm_hf").addHandler(handler)
    facts = {"auto": train(folder / "auto", NxMConfig("admm"), LAYERS, prepare=fail_in_one)}
    logging.getLogger("nxm_hf").removeHandler(handler)
    facts["fisher"] = train(folder / "fisher", NxMConfig("admm", settings={"scores": "fisher"}, settle=0.5), LAYERS)
    return {**facts, "said": said}


class Failing(Magnitude):
    """A method that cannot prune one layer."""

    def __call__(self, weight, bias, inputs, pattern):
        if weight.shape == (32, 64):
            raise ValueError("this layer is too wide")
        return super().__call__(weight, bias, inputs, pattern)


def refused(folder: Path) -> dict:
    """Return the errors of what cannot be done; every process raises them."""
    facts = {}
    for name, words in {
        "method": {"method": Failing()},
        "reconstruct": {"reconstruct": "block", "calibration": make_batches("llama", 2)},
        "permute": {"permute": True},
        "cache": {"cache": BlockCache(folder / "cache", {})},
    }.items():
        try:
            nxm_hf.prune(shard(make_model("llama")), **words)
        except ValueError as error:
            facts[name] = str(error)
    model = shard(make_model("llama"))
    if dist.get_rank() == 1:
        with torch.no_grad():
            model.model.layers[1].mlp.up_proj.weight.to_local()[0, 0] = torch.nan
    try:
        nxm_hf.prune(model)
    except ValueError as error:
        facts["nan"] = str(error)
    return facts


GROUPS: Groups = {
    "2": (
        2,
        {
            pruned: PRUNED,
            alone: [()],
            gathers: [()],
            trained: [("warmup", "NxMTrainer"), ("settle", "NxMCallback"), ("default", "NxMTrainer")],
            fallen_back: [()],
            refused: [()],
        },
    ),
    "3": (3, {uneven: [()]}),
    "4": (4, {sets: SETS}),
}


if __name__ == "__main__":
    main(GROUPS, sys.argv[1])
