"""Shipping: what stands beside the weights of a sparse model, and the check that what was written is what was meant."""

import shutil
from pathlib import Path

import torch
from torch import nn

from nxm_hf.config.config import NxMConfig
from nxm_hf.layers.plan import Plan
from nxm_hf.storage.checkpoints import LAST_WRITTEN, is_checkpoint
from nxm_hf.storage.model_card import write_card
from nxm_hf.storage.model_files import INDEX, WEIGHTS, saved_weights

# Beside the weights of a model, but not of the model: other weights, and what trainings and reports left there.
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".gguf", ".ckpt")
_LEFT = (INDEX, LAST_WRITTEN, "pytorch_model.bin.index.json", "nxm_pruning.json", "nxm_analysis.json", "report.html")
_FOLDERS = ("onnx", "openvino", "runs", "report")


def write_record(folder: str | Path, config: NxMConfig, plan: Plan) -> None:
    """Write `nxm_config.json` and the model card's section beside the weights."""
    config.save_pretrained(folder)
    write_card(folder, config, plan)


def check_written(folder: str | Path, model: nn.Module, plan: Plan) -> None:
    """Raise unless the weights in the files are, bit for bit, those in memory."""
    if not any((Path(folder) / name).is_file() for name in (WEIGHTS, INDEX)):
        if any(Path(folder).glob("adapter_model.*")):
            return  # adapters are all that this kind of model saves
        raise RuntimeError(
            f"transformers has written no weights into {folder}. With save_on_each_node=True some versions leave "
            "them out on all but the first machine; write save_on_each_node=False, and an output_dir that all share."
        )
    meant = {target.name: target.layer.weight.detach() for target in plan.targets}
    for name, weight in saved_weights(folder, model, list(meant)):
        if not torch.equal(weight.detach(), meant[name].cpu()):
            raise RuntimeError(f"{name} in {folder} is not the weight that was saved; the disk may be full or failing.")


def copy_beside(source: str | Path, folder: str | Path) -> None:
    """Copy what lies beside the weights of a model and is of it, such as its tokenizer; what is there stays."""
    folder = Path(folder).resolve()
    for path in sorted(Path(source).resolve().iterdir()):
        if _belongs(path) and not (folder / path.name).exists() and not folder.is_relative_to(path):
            _copy(path, folder / path.name)


def _belongs(path: Path) -> bool:
    if path.name.startswith(".") or path.name in _LEFT:
        return False
    if path.is_dir():
        return path.name not in _FOLDERS and not is_checkpoint(path)
    return path.suffix not in _WEIGHTS


def _copy(path: Path, target: Path) -> None:
    """A file or a folder, without its permissions: what was read-only there is to be ours to write."""
    if path.is_dir():
        target.mkdir()
        for inner in path.iterdir():
            _copy(inner, target / inner.name)
    else:
        shutil.copyfile(path, target)
