"""Pack a saved model into another directory, and unpack it again; each is written in full or not at all."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from nxm_hf.config import SparsityRecord
from nxm_hf.config.hub import read_json, write_json
from nxm_hf.layers.find import find_layers
from nxm_hf.layers.modules import check_is_model, is_transposed
from nxm_hf.packing import INDICES, NxMPackedConfig, names_in_files, pack, read_packed_config, row_pattern
from nxm_hf.packing.format import packed_shapes
from nxm_hf.patterns import NM
from nxm_hf.storage.manifest import RESTORE, check_unchanged
from nxm_hf.storage.model_card import write_card
from nxm_hf.storage.model_files import skeleton
from nxm_hf.storage.model_record import read_record
from nxm_hf.storage.replacing import replaced
from nxm_hf.storage.saving import bytes_of, check_free, copy_beside, write_record, written_whole
from nxm_hf.storage.shard_writer import write_shards
from nxm_hf.storage.verify import verify
from nxm_hf.storage.weight_files import WeightFiles
from nxm_hf.storage.weight_writer import Entry
from nxm_hf.storage.write_errors import explained
from nxm_hf.text import shortened

_RESULT = "nxm_pruning.json"  # of `nxm prune`; it describes the model in either form


@dataclass(frozen=True)
class PackingResult:
    """Describe what packing or unpacking did to the size of a model.

    Args:
        layers: Pattern of each layer that was packed or unpacked.
        plain_bytes: Bytes of these layers when they are not packed.
        packed_bytes: Bytes of these layers when they are packed.
        bytes_before: Bytes of all weight files that were read.
        bytes_after: Bytes of all weight files that were written.
        left_plain: Sparse layers that are not packed: name -> reason.
    """

    layers: dict[str, str]
    plain_bytes: int
    packed_bytes: int
    bytes_before: int
    bytes_after: int
    left_plain: dict[str, str]

    def __str__(self) -> str:
        lines = [
            f"{len(self.layers)} layers: {self.packed_bytes:,} bytes packed, {self.plain_bytes:,} as plain weights "
            f"({self.packed_bytes / max(self.plain_bytes, 1):.2%}).",
            f"All weights: {self.bytes_before:,} bytes before, {self.bytes_after:,} after "
            f"({self.bytes_after / max(self.bytes_before, 1):.1%}).",
        ]
        return "\n".join(lines + [f"Not packed: {name}, {why}." for name, why in self.left_plain.items()])


def pack_directory(source: str | Path, out: str | Path) -> PackingResult:
    """Pack the sparse layers of a saved model: values and indices instead of weights with zeros. No bit is lost.

    Args:
        source: Directory of the model, which has a record of its sparse layers.
        out: The directory to write; it must not exist, or be empty.

    Returns:
        The layers and their sizes.

    Raises:
        ValueError: If `out` exists, or nothing in `source` can be packed.
        FileNotFoundError: If `source` holds no model, or has no record of being sparse.
    """
    source, out = Path(source), Path(out)
    check_free(out)
    check_unchanged(source, RESTORE)
    model, record = skeleton(source), _record(source)
    if (other := (read_json(source, "config.json", {}) or {}).get("quantization_config")) is not None:
        packed = isinstance(other, dict) and other.get("quant_method") == "nxm"
        problem = "is packed already" if packed else "is quantized, and cannot be packed too"
        raise ValueError(f"{source} {problem}. Name the directory of a plain sparse model.")
    with WeightFiles(source) as files, written_whole(out, bytes_of(source)) as folder:
        rows, left_plain = _packable(files, model, record)
        names = _file_names(files, model, list(rows))
        transposed = [layer for layer in rows if is_transposed(model.get_submodule(layer))]
        writer = _Packer(
            files, {names[layer]: row for layer, row in rows.items()}, {names[layer] for layer in transposed}
        )
        write_shards(files, folder, writer.entries, writer.read)
        config = NxMPackedConfig({layer: record.layers[layer] for layer in rows}, transposed, names)
        _write_beside(source, folder, {"quantization_config": config.to_dict()}, record)
        return _result(config, source, folder, folder, left_plain)


def unpack_directory(source: str | Path, out: str | Path) -> PackingResult:
    """Unpack a packed model into plain weights with zeros, which transformers loads without this library.

    Args:
        source: Directory of the packed model.
        out: The directory to write; it must not exist, or be empty.

    Returns:
        The layers and their sizes.

    Raises:
        ValueError: If `out` exists, `source` is not packed, or a layer in it is damaged.
        FileNotFoundError: If `source` holds no model.
    """
    source, out = Path(source), Path(out)
    check_free(out)
    check_unchanged(source, RESTORE)
    model, config = skeleton(source), read_packed_config(source)
    if config is None:
        raise ValueError(
            f"{type(model).__name__} in {source} is not packed. Name a directory that `nxm pack` or save_packed wrote."
        )
    with WeightFiles(source) as files, written_whole(out, 2 * bytes_of(source)) as folder:
        write_shards(files, folder, lambda name: [files.entry(name)], files.__getitem__)
        _write_beside(source, folder, {}, _record(source))
        return _result(config, source, folder, source, {})


def save_packed(
    model: PreTrainedModel, save_directory: str | Path, *, max_shard_size: int | str = "50GB"
) -> PackingResult:
    """Save a sparse model with packed weights. After `import nxm_hf`, `from_pretrained` loads the directory.

    Args:
        model: A sparse model with a record of its layers, plain or loaded from a packed directory.
        save_directory: The directory to write; it must not exist, or be empty.
        max_shard_size: Most bytes of one file, as in `save_pretrained`.

    Returns:
        The layers and their sizes.

    Raises:
        TypeError: If `model` is no model.
        ValueError: If the directory exists, or the model is not sparse, or nothing in it can be packed.
    """
    check_is_model(model)
    out = Path(save_directory)
    check_free(out)
    record = read_record(model)
    if record is None:
        raise ValueError(
            f"This {type(model).__name__} has no record of being sparse, so it cannot be packed. Make it sparse with "
            'nxm_hf.prune(model, "2:4") or a training.'
        )
    beside, needed = out.with_name(f"{out.name}.plain"), 2 * bytes_of(model)
    with explained(out, needed, beside), written_whole(beside, needed, keep=False) as plain:
        model.save_pretrained(plain, max_shard_size=max_shard_size)
        write_record(plain, record, verify(model))
        config = read_packed_config(plain)
        if config is None:
            return pack_directory(plain, out)
        with written_whole(out, needed) as folder:
            shutil.copytree(plain, folder, dirs_exist_ok=True)
        return _result(config, plain, out, out, {})


def pack_in_place(folder: str | Path) -> None:
    """Pack the weights of a directory that holds other files too, such as the output directory of a training.

    Args:
        folder: Directory of a sparse model. One that is packed already is left alone.

    Raises:
        ValueError: If nothing in it can be packed.
    """
    folder = Path(folder)
    if read_packed_config(folder) is not None:
        return
    with replaced(folder, bytes_of(folder)) as new:
        packed = new.with_name("packed")
        pack_directory(folder, packed)
        weights = [path.name for path in packed.glob("model*.safetensors*")]
        for name in ("config.json", *weights, "README.md"):
            os.replace(packed / name, new / name)
        shutil.rmtree(packed)


class _Packer:
    """Pack the weights of some layers while their file is written."""

    def __init__(self, files: WeightFiles, rows: dict[str, NM], transposed: set[str]):
        self._files, self._rows, self._transposed = files, rows, transposed
        self._indices: dict[str, Tensor] = {}  # of the weights that are written; they come last in a file

    def entries(self, name: str) -> list[Entry]:
        """Return the tensors to write for one of the plain files: values and indices of a packed weight."""
        entry, layer = self._files.entry(name), name.removesuffix(".weight")
        if layer == name or layer not in self._rows:
            return [entry]
        shape = entry.shape[::-1] if layer in self._transposed else entry.shape
        values, indices = packed_shapes((shape[0], shape[1]), self._rows[layer])
        return [entry._replace(shape=values), Entry(f"{layer}.{INDICES}", "U8", indices)]

    def read(self, name: str) -> Tensor:
        """Return a tensor to write."""
        if name in self._indices:
            return self._indices.pop(name)
        tensor, layer = self._files[name], name.removesuffix(".weight")
        if layer == name or layer not in self._rows:
            return tensor
        matrix = tensor.t() if layer in self._transposed else tensor
        values, self._indices[f"{layer}.{INDICES}"] = pack(matrix, self._rows[layer], layer)
        return values


def _packable(
    files: WeightFiles, model: PreTrainedModel, record: SparsityRecord
) -> tuple[dict[str, NM], dict[str, str]]:
    """Return the pattern of a row of each layer that can be packed, and why the other sparse layers cannot."""
    modules, stacks = dict(model.named_modules()), {layer.name for layer in find_layers(model) if layer.holds_experts}
    rows: dict[str, NM] = {}
    left_plain: dict[str, str] = {}
    for name, text in record.layers.items():
        row, module = row_pattern(text), modules.get(name)
        if row is None:
            left_plain[name] = f"its {text} has no groups of M with N kept along a row"
        elif name in stacks:
            left_plain[name] = "it holds the matrices of several experts"
        elif module is None:
            left_plain[name] = "the model has no such layer"
        elif type(module).forward is not nn.Linear.forward and not is_transposed(module):
            left_plain[name] = f"it is a {type(module).__name__} and not a Linear"
        else:
            rows[name] = row
    saved_alone = _file_names(files, model, list(rows))
    for name in [name for name in rows if name not in saved_alone]:
        left_plain[name] = "its family saves it joined with another layer"
        del rows[name]
    if not rows:
        reasons = shortened([f"{name}, {why}" for name, why in left_plain.items()], "; ") or "no layer of it is sparse"
        raise ValueError(
            f"Nothing in {files.folder} can be packed: {reasons}. Packing saves 44 to 47 % of layers with 2:4. To get "
            "them, type: nxm convert MODEL OUT --to 2:4. For files with other zeros, type: zstd model.safetensors."
        )
    return rows, left_plain


def _file_names(files: WeightFiles, model: PreTrainedModel, layers: list[str]) -> dict[str, str]:
    """Return the name in the files of each layer that has a weight of its own there."""
    names = {layer: layer for layer in layers}
    if not all(f"{layer}.weight" in files for layer in layers):
        names = names_in_files(model, layers)
    return {layer: name for layer, name in names.items() if f"{name}.weight" in files}


def _write_beside(source: Path, folder: Path, added: dict[str, Any], record: SparsityRecord) -> None:
    """Write the files beside the weights: the source's own, its config with what is added, and the model card."""
    config = read_json(source, "config.json", {}) or {}
    config.pop("quantization_config", None)
    write_json(folder, "config.json", {**config, **added})
    copy_beside(source, folder)
    if (source / _RESULT).is_file():
        shutil.copyfile(source / _RESULT, folder / _RESULT)
    write_card(folder, record, verify(folder))


def _result(
    config: NxMPackedConfig, source: Path, folder: Path, packed: Path, left_plain: dict[str, str]
) -> PackingResult:
    with WeightFiles(packed) as files:
        packed_bytes, plain_bytes = files.packed_bytes()
    before, after = (sum(path.stat().st_size for path in each.glob("model*.safetensors")) for each in (source, folder))
    return PackingResult(config.layers, plain_bytes, packed_bytes, before, after, left_plain)


def _record(source: Path) -> SparsityRecord:
    try:
        return SparsityRecord.from_pretrained(source)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{source} has no record of being sparse. Make one, with the zeros that it has: "
            "nxm convert MODEL OUT --to 2:4."
        ) from None
