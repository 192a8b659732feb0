"""Saving: the files beside the weights of a sparse model, and the check of the weights that were written."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor, nn
from transformers import PreTrainedModel

from nxm_hf.config import SparsityRecord
from nxm_hf.config.hub import model_folder
from nxm_hf.layers.plan import Plan
from nxm_hf.layers.sharding import plain_class
from nxm_hf.storage.card_facts import CardFacts
from nxm_hf.storage.checkpoints import LAST_WRITTEN, RUN_FILE, is_checkpoint
from nxm_hf.storage.converted_weights import ConvertedWeights
from nxm_hf.storage.lock import DirectoryLock
from nxm_hf.storage.manifest import LOCK_FILE, MANIFEST_FILE, record_model
from nxm_hf.storage.model_card import write_card
from nxm_hf.storage.model_files import load_with_missing, saved_weights
from nxm_hf.storage.replacing import check_parents, sync, sync_files
from nxm_hf.storage.same_bits import same_bits
from nxm_hf.storage.state_file import fingerprint
from nxm_hf.storage.verify import Verification
from nxm_hf.storage.weight_files import WeightFiles, holds_weights
from nxm_hf.storage.write_errors import explained
from nxm_hf.storage.written_weights import OtherParameter, WrittenWeights, given_parameters, other_parameters

# Files beside the weights that do not belong to the model: other weights, and what trainings and reports left there.
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".gguf", ".ckpt")
_LEFTOVERS = (
    LAST_WRITTEN,
    "adapter_config.json",
    MANIFEST_FILE,
    LOCK_FILE,
    "pytorch_model.bin.index.json",
    "nxm_pruning.json",
    "nxm_analysis.json",
    RUN_FILE,
    "report.html",
)
_LEFTOVER_FOLDERS = ("onnx", "openvino", "runs", "report")


def write_record(
    folder: str | Path, record: SparsityRecord, verification: Verification, facts: CardFacts | None = None
) -> None:
    """Write `nxm_config.json` and the model card beside the weights.

    Args:
        folder: Directory of the model.
        record: The record of the model.
        verification: The verification of its weights.
        facts: The origin of the weights, for the card; None leaves that part of the card unchanged.
    """
    record.save_pretrained(folder)
    write_card(folder, record, verification, facts)


def check_written(
    folder: str | Path,
    plan: Plan,
    expected: str | None = None,
    record: bool = False,
    given: Mapping[str, Tensor] | None = None,
) -> None:
    """Raise unless the weights in the files equal those in memory, bit for bit.

    Weights are compared whatever their names in the files. Parameters that are not pruned are compared if they are
    saved in the type and shape that they have in memory.

    Args:
        folder: Directory of the model.
        plan: The pruned layers and their model.
        expected: Fingerprint of the pruned weights, for a process that holds parts of them only.
        record: Write the manifest of the directory as `record_model` does. Its digests are made in the same pass.
        given: The state dict that was saved, if it is not the model's own. Its parameters are compared instead.

    Raises:
        RuntimeError: If a weight differs, or if transformers has written no weights.
    """
    if not holds_weights(folder):
        if any(model_folder(folder).glob("adapter_model.*")):
            if record:
                record_model(folder)
            return  # this kind of model saves adapters alone
        raise RuntimeError(
            f"transformers has written no weights into {folder}. With save_on_each_node=True some versions leave "
            "them out on all but the first machine; write save_on_each_node=False, and an output_dir that all share."
        )
    layers = [target.layer for target in plan.targets]
    if expected is not None:
        if fingerprint(saved_weights(folder, plan.model, layers)) != expected:
            raise RuntimeError(f"The weights in {folder} are not those that were saved; is the disk full or failing?")
        if record:
            record_model(folder)
        return
    if given is not None:
        layers, others = [], given_parameters(plan.model, given)
    else:
        others = other_parameters(plan.model, layers)
    written = WrittenWeights(folder, [*layers, *others])
    if record:
        record_model(folder, written.by_file)
    else:
        written.read()
    equal = written.equal()
    layers = [layer for layer in layers if layer.name not in equal]  # also those that are saved under other names
    for layer, (name, weight) in zip(layers, saved_weights(folder, plan.model, layers), strict=True):
        if not same_bits(weight, layer.weight.cpu()):
            raise _lost(name, folder)
    differing = written.differing()
    unseen = [each for each in others if each.name not in equal | differing]
    differing |= _differing_renamed(folder, plan.model, unseen)
    _check_loaded(folder, plan.model, [each for each in others if each.name in differing])


def _differing_renamed(folder: str | Path, model: nn.Module, parameters: Sequence[OtherParameter]) -> set[str]:
    """Return the names of parameters that stand in the files under other names, with another bit."""
    if not parameters:
        return set()
    with WeightFiles(folder) as files:
        weights = ConvertedWeights(files, model)
        found = ((each, weights[each.key]) for each in parameters if each.key in weights)
        return {
            each.name
            for each, weight in found
            if (weight.dtype, weight.shape) == (each.weight.dtype, each.weight.shape)
            and not same_bits(weight, each.weight.cpu())
        }


def _check_loaded(folder: str | Path, model: nn.Module, parameters: Sequence[OtherParameter]) -> None:
    """Raise unless a model that is loaded has the same parameters: some families save them in another form."""
    if not parameters:
        return
    if not isinstance(model, PreTrainedModel):
        raise _lost(parameters[0].name, folder)
    loaded, _ = load_with_missing(plain_class(model), folder, dtype=parameters[0].weight.dtype)
    for each in parameters:
        if not same_bits(loaded.get_parameter(each.name), each.weight.cpu()):
            raise _lost(each.name, folder)


def _lost(name: str, folder: str | Path) -> RuntimeError:
    return RuntimeError(f"{name} in {folder} is not the weight that was saved; the disk may be full or failing.")


def check_free(out: str | Path) -> None:
    """Raise if a directory to write is there already, and is not empty.

    Args:
        out: The directory.

    Raises:
        ValueError: If it is a file, or a directory with anything in it.
    """
    out = Path(out)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ValueError(f"{out} is there already, and nothing is overwritten. Name another place, or remove it.")
    check_parents(out)


@contextmanager
def claimed(out: str | Path) -> Iterator[None]:
    """Keep other processes from writing a directory in the body.

    Args:
        out: The directory; it must not exist, or be empty.

    Raises:
        ValueError: If it has content, or if another process writes it.
    """
    out = Path(out)
    purpose = f"{out} is being written by another process. Wait for it, or name another place"
    with DirectoryLock(out.parent / f".{out.name}.lock", purpose):
        check_free(out)
        yield


@contextmanager
def written_whole(out: str | Path, needed: int, keep: bool = True) -> Iterator[Path]:
    """Give a hidden folder to write into. At the end it gets a manifest and becomes `out`; an error removes it.

    Args:
        out: The directory; it must not exist, or be empty.
        needed: About how many bytes will be written, for the message if there is no room.
        keep: Whether it becomes `out`; otherwise it is removed at the end too.

    Yields:
        The folder. It has the name of `out`, from which a new model card takes its title.

    Raises:
        ValueError: If `out` has content, or if another process writes it.
        OSError: If a file cannot be written. The message says which, and how much room is needed.
    """
    out = Path(out)
    with claimed(out):
        hidden = out.parent / f".{out.name}.unfinished"
        folder = hidden / out.name
        try:
            with explained(out, needed, hidden):
                shutil.rmtree(hidden, ignore_errors=True)  # of an earlier run that was killed
                folder.mkdir(parents=True)
                yield folder
                if keep:
                    record_model(folder)
                    put_in_place(folder, out)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)


def put_in_place(folder: Path, out: Path) -> None:
    """Rename a complete directory, once all of it is on the disk.

    Args:
        folder: The directory.
        out: Its new name, of nothing or of an empty directory.
    """
    sync_files(folder)
    os.rename(folder, out)
    sync(out.parent)


def bytes_of(weights: nn.Module | Path) -> int:
    """Return the bytes of all weights of a model, or of the safetensors files of its directory.

    Args:
        weights: The model or the directory.
    """
    if isinstance(weights, Path):
        return sum(path.stat().st_size for path in weights.glob("*.safetensors"))
    return sum(parameter.nbytes for parameter in weights.parameters())


def copy_beside(source: str | Path, folder: str | Path) -> None:
    """Copy the files beside a model's weights that belong to it, such as its tokenizer.

    Args:
        source: Directory of the model.
        folder: The other directory. Files that are there stay.
    """
    folder = Path(folder).resolve()
    for path in sorted(Path(source).resolve().iterdir()):
        if _belongs(path) and not (folder / path.name).exists() and not folder.is_relative_to(path):
            _copy(path, folder / path.name)


def _belongs(path: Path) -> bool:
    if path.name.startswith((".", "model.safetensors.index.")) or path.name in _LEFTOVERS:
        return False
    if path.is_dir():
        return path.name not in _LEFTOVER_FOLDERS and not is_checkpoint(path)
    return path.suffix not in _WEIGHT_SUFFIXES


def _copy(path: Path, target: Path) -> None:
    """Copy a file or a folder without its permissions, so that a read-only source gives a writable copy."""
    if path.is_dir():
        target.mkdir()
        for inner in path.iterdir():
            _copy(inner, target / inner.name)
    else:
        shutil.copyfile(path, target)
