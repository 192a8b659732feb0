"""Count the weights of layers while their files are read to be compared with a manifest."""

from bisect import bisect_right
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import NamedTuple

import torch

from nxm_hf.layers.find import Layer
from nxm_hf.patterns import NM, Pattern
from nxm_hf.solvers.entry_counts import EntryCounts, PartCounter
from nxm_hf.storage.file_blocks import Block
from nxm_hf.storage.tensor_places import Place, tensor_places
from nxm_hf.storage.weight_files import WeightFiles

_TYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


class Span(NamedTuple):
    """Describe a weight that is counted as its bytes come.

    Args:
        key: Its name in the file.
        begin: Where its bytes begin in the file.
        end: Where they end.
        unit: Its bytes are counted in multiples of so many, from `begin` on; the last may be shorter.
        counter: Counts them.
    """

    key: str
    begin: int
    end: int
    unit: int
    counter: PartCounter


class SpanCounts:
    """Count the weights of a file, whose blocks it is called with. Blocks may come in any order, from any thread.

    A unit of a weight is counted with the block that it ends in, so it may begin in the block before.

    Args:
        spans: The weights, none of which overlap. No unit has more bytes than `OVERLAP`.
    """

    def __init__(self, spans: Sequence[Span]):
        self._spans = sorted((span for span in spans if span.end > span.begin), key=lambda span: span.begin)
        self._ends = [span.end for span in self._spans]
        # Bytes and their counts, by weight. Threads append to lists, which needs no lock.
        self._parts: dict[str, list[tuple[int, EntryCounts]]] = {span.key: [] for span in spans}
        self._sizes = {span.key: span.end - span.begin for span in spans}

    def __call__(self, block: Block) -> None:
        """Count what ends in a block.

        Args:
            block: A block of the file.
        """
        for i in range(bisect_right(self._ends, block.begin), len(self._spans)):
            key, start, end, unit, counter = self._spans[i]
            if start >= block.end:
                return
            begin = start if start > block.begin else start + (block.begin - start) // unit * unit
            if end > block.end:
                end = start + (block.end - start) // unit * unit
            if begin < end:
                counts = counter.count(block.bytes(begin, end), block.address(begin))
                self._parts[key].append((end - begin, counts))

    def get(self, key: str) -> EntryCounts | None:
        """Return the counts of a weight, or None if not all of its bytes have come.

        Args:
            key: Its name in the file.
        """
        parts = self._parts.get(key, [])
        if sum(size for size, _ in parts) != self._sizes.get(key, -1):
            return None
        return reduce(EntryCounts.plus, (counts for _, counts in parts), EntryCounts())


class LayerCounts:
    """Count the weights of layers that stand in the files of a directory as they are.

    That is so for N:M along rows of fp32, bf16 and fp16. Any other layer has no counts here.

    Args:
        folder: The directory.
        layers: Layers of its skeleton, each with its pattern.

    Raises:
        FileNotFoundError: If the directory holds no safetensors files.
        ValueError: If a file cannot be read.
    """

    def __init__(self, folder: str | Path, layers: Sequence[tuple[Layer, Pattern]]):
        self.by_file: dict[str, list[SpanCounts]] = {}  # the counts of each file, by its name in the folder
        with WeightFiles(folder) as files:
            if files.packed is not None or any(layer.key not in files for layer, _ in layers):
                return
            paths = [files.folder / shard for shard in files.shards]
        places = {name: (path, place) for path in paths for name, place in tensor_places(path).items()}
        entries = sum(layer.weight.numel() for layer, _ in layers)
        counters: dict[tuple[torch.dtype, NM], PartCounter] = {}
        spans: dict[Path, list[Span]] = {}
        for layer, pattern in layers:
            path, place = places.get(layer.key, (None, None))
            if path is None or place is None or not isinstance(pattern, NM) or not _is_plain(layer, pattern, place):
                continue
            kind = _TYPES[place.entry.dtype], pattern
            if kind not in counters:
                counters[kind] = PartCounter(kind[0], pattern.n, pattern.m, entries)
            unit = 16 * pattern.m * place.entry.width  # a step of the kernel
            spans.setdefault(path, []).append(Span(layer.key, place.begin, place.end, unit, counters[kind]))
        for path, of_file in spans.items():
            self.by_file[path.relative_to(folder).as_posix()] = [SpanCounts(of_file)]

    def get(self, layer: Layer) -> EntryCounts | None:
        """Return the counts of a layer, or None if its weight has not been read to its end.

        Args:
            layer: The layer.
        """
        found = (counts.get(layer.key) for readers in self.by_file.values() for counts in readers)
        return next((counts for counts in found if counts is not None), None)


def _is_plain(layer: Layer, pattern: NM, place: Place) -> bool:
    """Return True if the bytes of a weight are the rows of its matrix, and groups fill them."""
    matrix = layer.matrix(layer.weight)
    return (
        place.entry.dtype in _TYPES
        and place.entry.shape == tuple(layer.weight.shape)
        and matrix.is_contiguous()
        and matrix.shape[-1] % pattern.m == 0
        and place.begin % place.entry.width == 0
    )
