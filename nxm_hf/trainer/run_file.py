"""The file `nxm_run.json`: all that is needed to repeat a training. `nxm report` shows it."""

import json
import logging
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from transformers import TrainingArguments

from nxm_hf._version import __version__
from nxm_hf.config import NxMConfig
from nxm_hf.config.hub import hub_name, write_json
from nxm_hf.layers.modules import unwrap
from nxm_hf.storage.card_facts import DataFacts
from nxm_hf.storage.checkpoints import RUN_FILE

logger = logging.getLogger("nxm_hf")
FORMAT = 1
_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "peft", "sentence-transformers", "trl")
# Of the arguments of a Trainer only these: others hold paths, names and tokens.
_ARGUMENTS = (
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_ratio",
    "warmup_steps",
    "num_train_epochs",
    "max_steps",
    "max_grad_norm",
    "label_smoothing_factor",
    "gradient_checkpointing",
    "bf16",
    "fp16",
    "tf32",
    "torch_compile",
    "group_by_length",
    "full_determinism",
)


def describe_run(
    args: TrainingArguments, model: nn.Module, optimizer: Optimizer, config: NxMConfig, train_dataset: Any, steps: int
) -> dict[str, Any]:
    """Describe a training: model, data, optimizer, schedule, batch, seeds, sparsity, versions.

    Args:
        args: The arguments of the Trainer.
        model: The model.
        optimizer: The optimizer, without accelerate's wrapper.
        config: What to prune and how.
        train_dataset: The training data, or None.
        steps: The number of optimizer steps of the whole training.

    Returns:
        A dict of sections, each a dict that JSON can hold.
    """
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    settings = {key: value for key, value in optimizer.defaults.items() if _is_plain(value) and value is not None}
    if decays := [group["weight_decay"] for group in optimizer.param_groups if "weight_decay" in group]:
        settings["weight_decay"] = max(decays)  # biases and norms are in a group without
    return {
        "format": FORMAT,
        "model": _describe_model(model),
        "data": {key: value for key, value in vars(DataFacts.of(train_dataset)).items() if value is not None},
        "optimizer": {"class": type(optimizer).__name__, **settings},
        "training": {"steps": steps, **{key: _plain(getattr(args, key, None)) for key in _ARGUMENTS}},
        "batch": {
            "rows of a step": batch,
            "per device": args.per_device_train_batch_size,
            "accumulation": args.gradient_accumulation_steps,
            "processes": args.world_size,
        },
        "seed": {"seed": args.seed, "data_seed": args.data_seed},
        "sparsity": config.to_dict() | dict(zip(("warmup", "settle"), config.phases, strict=True)),
        "versions": _versions(next(model.parameters()).device),
    }


def write_run_file(folder: str | Path, description: dict[str, Any]) -> None:
    """Write the description of a training into its output directory. If that fails, the training goes on.

    Args:
        folder: The directory; it is created if needed.
        description: What `describe_run` returned.
    """
    writing = f".{RUN_FILE}.writing"  # a killed process leaves the older file complete
    try:
        write_json(Path(folder), writing, description)
        os.replace(Path(folder) / writing, Path(folder) / RUN_FILE)
    except OSError as error:
        logger.warning("%s could not be written (%s), so `nxm report` cannot show the settings.", RUN_FILE, error)


def _describe_model(model: nn.Module) -> dict[str, Any]:
    inner = unwrap(model)
    name = str(getattr(getattr(inner, "config", None), "_name_or_path", ""))
    origin = hub_name(name) or Path(name).name  # no path of this machine
    described: dict[str, Any] = {"class": type(inner).__name__, "from": origin}
    parameters = list(inner.parameters())
    described["parameters"] = sum(parameter.numel() for parameter in parameters)
    described["trained"] = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    described["weights"] = str(parameters[0].dtype).removeprefix("torch.")
    return {key: value for key, value in described.items() if value != ""}


def _versions(device: torch.device) -> dict[str, str]:
    found = {"nxm_hf": __version__, "Python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return {**found, "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type}


def _plain(value: Any) -> Any:
    """Return a value that JSON can hold: the text of an enumeration, for one."""
    value = getattr(value, "value", value)
    return value if _is_plain(value) else str(value)


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True
