"""The weight files of a saved model, read one tensor at a time.

Packed layers are unpacked and checked on the way, so that a packed directory reads like a plain one.
"""

import json
import os
import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open
from torch import Tensor

from nxm_hf.config.hub import model_folder
from nxm_hf.packing import INDICES, NxMPackedConfig, check_packed, read_packed_config, row_pattern, unpack
from nxm_hf.patterns import NM
from nxm_hf.storage.weight_writer import Entry

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# What `save_pretrained(variant="fp16")` writes: one file, or an index. The files of an index have numbers.
_OF_VARIANT = re.compile(r"model\.((?:(?!-\d{5}-of-)[\w.-])+)\.safetensors|model\.safetensors\.index\.([\w.-]+)\.json")


def variants_in(folder: str | Path) -> list[str]:
    """Return the variants that a directory has, such as "fp16", beside its plain weights or without them.

    Args:
        folder: Directory of a model.
    """
    found = (_OF_VARIANT.fullmatch(path.name) for path in model_folder(folder).glob("model.*") if path.is_file())
    return sorted({match[1] or match[2] for match in found if match is not None})


def variant_to_read(folder: str | Path) -> str | None:
    """Return the variant to read from a directory: None if it has plain weights, or no single variant.

    Args:
        folder: Directory of a model.
    """
    variants = [] if _has_plain_weights(folder) else variants_in(folder)
    return variants[0] if len(variants) == 1 else None


def holds_weights(folder: str | Path) -> bool:
    """Return True if a directory has whole weights to read in safetensors files: the usual ones, or one variant.

    Args:
        folder: Directory of a model.
    """
    return _has_plain_weights(folder) or variant_to_read(folder) is not None


def _has_plain_weights(folder: str | Path) -> bool:
    return any((model_folder(folder) / name).is_file() for name in (WEIGHTS, INDEX))


class WeightFiles:
    """Read the safetensors files of a directory one tensor at a time. Use it in a `with` block.

    A packed weight is read as the dense tensor that it stands for. Without plain weights, the only variant is read.

    Args:
        folder: Directory of the model.

    Raises:
        FileNotFoundError: On entering the block, if the directory holds no safetensors files.
        ValueError: On entering the block, if a file cannot be read.
    """

    def __init__(self, folder: str | Path):
        self.folder = model_folder(folder)
        self.packed: NxMPackedConfig | None = None
        self.variant: str | None = None
        self.index: Path | None = None
        self.shards: dict[str, list[str]] = {}  # file name -> names of its tensors, without the indices of packed ones
        self._layers: dict[str, str] = {}  # name of a packed layer in the files -> its name in the model
        self._stack = ExitStack()
        self._file_of: dict[str, Any] = {}  # name of a tensor in the files -> open file

    def __enter__(self) -> "WeightFiles":
        self.packed = read_packed_config(self.folder)
        self._layers = self.packed.layers_by_file_name() if self.packed else {}
        indices = {f"{name}.{INDICES}" for name in self._layers}
        for path in self._paths():
            try:
                file = self._stack.enter_context(safe_open(path, "pt"))
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{path} cannot be read ({error}). Save the model again.") from error
            names = file.keys()
            if odd := next((name for name in names if not name.isprintable()), None):  # transformers logs them
                raise ValueError(f"{path} names a tensor {odd[:200]!a}, which cannot be printed. Save the model again.")
            self._file_of.update(dict.fromkeys(names, file))
            self.shards[path.name] = sorted(set(names) - indices)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def __contains__(self, name: str) -> bool:
        return name in self._file_of and name.removesuffix(f".{INDICES}") not in self._layers

    def __getitem__(self, name: str) -> Tensor:
        packed = self._packed(name)
        return self._raw(name) if packed is None else self._unpacked(name, *packed)

    def entry(self, name: str) -> Entry:
        """Return the type and the shape of a tensor.

        Args:
            name: Name of the tensor. A packed weight has the shape of the dense one that it stands for.
        """
        entry, packed = self._raw_entry(name), self._packed(name)
        if packed is None:
            return entry
        layer, row = packed
        shape = self._dense_shape(layer, entry.shape, row)
        return entry._replace(shape=shape[::-1] if self._is_transposed(layer) else shape)

    def packed_bytes(self) -> tuple[int, int]:
        """Return the bytes of all packed layers: as they are in the files, and as plain weights."""
        parts = [f"{name}.{tensor}" for name in self._layers for tensor in ("weight", INDICES)]
        plain = sum(self.entry(f"{name}.weight").nbytes for name in self._layers)
        return sum(self._raw_entry(part).nbytes for part in parts), plain

    def metadata(self, shard: str) -> dict[str, str]:
        """Return the metadata of a file.

        Args:
            shard: Name of the file, one of `shards`.
        """
        return dict(self._file_of[self.shards[shard][0]].metadata() or {}) if self.shards[shard] else {}

    def _packed(self, name: str) -> tuple[str, NM] | None:
        """Return the layer and the pattern of its rows if a tensor of the files is the weight of a packed layer."""
        layer = self._layers.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        if layer is None or self.packed is None:
            return None
        return layer, cast(NM, row_pattern(self.packed.layers[layer]))

    def _is_transposed(self, layer: str) -> bool:
        return self.packed is not None and layer in self.packed.transposed

    def _raw(self, name: str) -> Tensor:
        return cast(Tensor, self._file_of[name].get_tensor(name))

    def _raw_entry(self, name: str) -> Entry:
        part = self._file_of[name].get_slice(name)
        return Entry(name, part.get_dtype(), tuple(part.get_shape()))

    def _unpacked(self, name: str, layer: str, row: NM) -> Tensor:
        indices = f"{name.removesuffix('.weight')}.{INDICES}"
        if absent := [part for part in (name, indices) if part not in self._file_of]:
            raise ValueError(f"{layer} is packed by config.json, and {self.folder} lacks {absent[0]}. Pack it again.")
        packed = self._raw(name), self._raw(indices)
        shape = self._dense_shape(layer, packed[0].shape, row)
        check_packed(*packed, row, shape, layer)
        matrix = unpack(*packed, row)
        return matrix.t().contiguous() if self._is_transposed(layer) else matrix

    def _dense_shape(self, layer: str, packed: Sequence[int], row: NM) -> tuple[int, int]:
        """Return the shape [out, in] of the matrix that packed values stand for."""
        if len(packed) != 2:
            raise ValueError(
                f"{layer} is packed by config.json, and its values in {self.folder} have the shape {tuple(packed)}; "
                "they need two dimensions. Copy or download the file again, or pack it again."
            )
        return packed[0], packed[1] // row.n * row.m

    def _paths(self) -> list[Path]:
        self.variant = variant_to_read(self.folder)
        index, weights = (self.folder / _with_variant(name, self.variant) for name in (INDEX, WEIGHTS))
        if index.is_file():
            self.index = index
            return [self.folder / shard for shard in _shards(index)]
        if not weights.is_file():
            if variants := variants_in(self.folder):
                raise FileNotFoundError(
                    f"{self.folder} holds the variants {' and '.join(variants)}, and no {WEIGHTS}. Load one by "
                    f"from_pretrained({str(self.folder)!r}, variant={variants[0]!r}), and save it elsewhere."
                )
            pickled = next(self.folder.glob("pytorch_model*.bin"), None)
            advice = (
                f"{pickled.name} is a pickle: load it with transformers and save_pretrained again." if pickled else ""
            )
            raise FileNotFoundError(
                f"{self.folder} holds neither {WEIGHTS} nor {INDEX}; it needs one of them. {advice}".strip()
            )
        return [weights]


def _with_variant(name: str, variant: str | None) -> str:
    """Return the name that transformers gives to a file of a variant."""
    stem, _, ending = name.rpartition(".")
    return name if variant is None else f"{stem}.{variant}.{ending}"


def _shards(index: Path) -> list[str]:
    """Return the names of the files that an index lists. They must be regular files beside it."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index} cannot be read ({str(error)[:200]!r}). Save the model again.") from error
    for name in names:
        inside = isinstance(name, str) and name == os.path.basename(name) and len(name) < 256
        if not inside or not (index.parent / name).is_file():
            raise ValueError(f"{index} names {str(name)[:200]!r}, which is no file beside it. Save the model again.")
    return names
