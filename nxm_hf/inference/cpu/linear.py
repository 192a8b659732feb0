"""From tensors to workers: cover the tokens by tiles, and multiply each with the workers for its size."""

import ctypes
import threading
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from nxm_hf.inference.cpu import openmp
from nxm_hf.inference.cpu.workers import FIELDS, TOGETHER, few_tokens_worker, many_tokens_worker, tokens_of_tile
from nxm_hf.inference.layout import INPUTS, ROWS, Layout, rounded_up

FEW = 8  # tokens at most that the worker for few tokens gets
LINE = 64  # bytes of a cache line


class Task(ctypes.Structure):
    """The numbers that a worker reads and writes; see `workers.FIELDS`."""

    _fields_ = [(name, ctypes.c_int64) for name in FIELDS]


class _Scratch(threading.local):
    """Memory for the inputs and outputs of a tile, which each calling thread keeps."""

    def __init__(self) -> None:
        self.tensor = torch.empty(0, dtype=torch.uint8)

    def address(self, size: int) -> int:
        if self.tensor.numel() < size + LINE:
            self.tensor = torch.empty(size + LINE, dtype=torch.uint8)
        return rounded_up(self.tensor.data_ptr(), LINE)


_scratch = _Scratch()


def multiply(x: Tensor, values: Tensor, indices: Tensor, bias: Tensor, layout: Layout) -> tuple[Tensor, bool]:
    """Multiply tokens with a packed weight, and add the bias.

    Args:
        x: The tokens, a contiguous fp32 matrix [tokens, in].
        values: The kept entries of the weight, in fp32 or bf16.
        indices: Their places.
        bias: The fp32 bias, filled up with zeros to whole blocks of rows.
        layout: The numbers of the weight.

    Returns:
        The fp32 outputs, and whether they are valid. They are invalid if an input is infinite or NaN, because its
        product with a pruned weight is NaN.
    """
    n, m, out_features, in_features = layout
    if in_features % INPUTS:
        x = F.pad(x, (0, -in_features % INPUTS))
    tokens, width = x.shape
    y = torch.empty(tokens, out_features)
    stride, value_bits = 4 * width, 8 * values.dtype.itemsize
    x_address, y_address = x.data_ptr(), y.data_ptr()
    task = Task(
        x_stride=stride,
        values=values.data_ptr(),
        indices=indices.data_ptr(),
        bias=bias.data_ptr(),
        out_features=out_features,
        chunks=width // INPUTS,
        blocks=values.shape[0],
    )
    task.self = ctypes.addressof(task)
    valid = True
    for vectors, first, count in cover(tokens, tokens_of_tile() // ROWS):
        threads = openmp.threads_for(count * width * out_features)
        task.next_job = task.next_slot = task.strange = 0
        task.x, task.tokens, task.y = x_address + first * stride, count, y_address + first * 4 * out_features
        if vectors:
            _share_tiles(task, vectors * ROWS, threads)
            worker = many_tokens_worker(n, m, value_bits, vectors)
        else:
            task.jobs = min(4 * threads, task.blocks) if threads > 1 else 1
            worker = few_tokens_worker(n, m, value_bits)
        openmp.run(worker.address, task.self, threads)
        valid = valid and not task.strange
    return y, valid


def cover(tokens: int, largest: int) -> Iterator[tuple[int, int, int]]:
    """Yield ranges of tokens, each with the size of its tiles in vectors of sixteen tokens, or 0 for a few tokens.

    Args:
        tokens: How many tokens there are.
        largest: The largest tile, in vectors.

    Example:
        >>> list(cover(309, 8))  # two tiles of 128, one of 32, one of 16 and a rest of 5
        [(8, 0, 256), (2, 256, 32), (1, 288, 16), (0, 304, 5)]
    """
    first, vectors = 0, largest
    while first < tokens:
        left = tokens - first
        tile = vectors * ROWS
        if left <= FEW:
            vectors, count = 0, left
        elif vectors == 1 and left < tile:
            count = left
        else:
            count = left // tile * tile
        if count:
            yield vectors, first, count
        first, vectors = first + count, max(vectors // 2, 1)


def _share_tiles(task: Task, tile: int, threads: int) -> None:
    """Cut tiles of tokens into jobs, of parts of the rows where there are few tiles, and give each thread memory."""
    tiles = -(-task.tokens // tile)
    task.splits = min(-(-4 * threads // tiles), -(-task.blocks // 4)) if threads > 1 else 1
    task.jobs = tiles * task.splits
    task.scratch_size = 4 * tile * (task.chunks * INPUTS + TOGETHER * ROWS)
    task.scratch = _scratch.address(threads * task.scratch_size)
