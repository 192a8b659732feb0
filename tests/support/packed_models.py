"""Sparse models saved twice: plain and packed."""

from pathlib import Path

from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

import nxm_hf
from nxm_hf.storage.packed_directory import pack_directory
from tests.support.models import MODELS, make_model

# SqueezeBERT's layers are convolutions, which are not packed.
FAMILIES = sorted(MODELS.keys() - {"squeezebert"})


def save_both(
    folder: Path, family: str = "bert", pattern: str = "2:4", **options
) -> tuple[PreTrainedModel, Path, Path]:
    """Return a sparse model, the directory of its plain weights, and that of its packed ones."""
    model = make_model(family)
    nxm_hf.prune(model, pattern)
    model.save_pretrained(folder / "plain", **options)
    pack_directory(folder / "plain", folder / "packed")
    return model, folder / "plain", folder / "packed"


def tensors_of(folder: Path) -> dict[str, object]:
    """Return the tensors in the files of a directory, by name, as they stand there."""
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def damage(folder: Path, name: str, change) -> None:
    """Change one tensor of a directory with one file."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors[name] = change(tensors[name])
    if tensors[name] is None:
        del tensors[name]
    save_file(tensors, path, metadata={"format": "pt"})
