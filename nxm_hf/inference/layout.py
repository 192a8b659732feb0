"""The layout of a packed weight in memory: sixteen rows side by side, so that a vector holds one entry of each."""

from typing import NamedTuple

import torch
from torch import Tensor

ROWS = 16  # rows of a block, one for each lane of a vector
INPUTS = 64  # inputs of a chunk; the last one is filled up with zeros
GROUP_SIZES = (4, 8)  # the kernels select within vectors of these sizes
WORD = 32  # bits of a word of indices


def index_bits(m: int) -> int:
    """Return the bits of an index in memory: a power of two, so that no index crosses words.

    Args:
        m: Entries of a group.
    """
    return 2 if m <= 4 else 4


def rounded_up(number: int, step: int) -> int:
    """Return the smallest multiple of a step that is not smaller than a number.

    Args:
        number: The number.
        step: The step.

    Example:
        >>> rounded_up(65, 64)
        128
    """
    return -(-number // step) * step


class Layout(NamedTuple):
    """The numbers of a packed weight.

    Args:
        n: Kept entries of a group.
        m: Entries of a group.
        out_features: Rows of the weight, without those that fill up the last block.
        in_features: Columns of the weight, without those that fill up the last chunk.
    """

    n: int
    m: int
    out_features: int
    in_features: int


def held_pattern(matrix: Tensor) -> tuple[int, int] | None:
    """Return the sparsest n:m that a matrix holds and that has a layout, or None.

    Args:
        matrix: The weight, [out, in].
    """
    held = []
    for m in GROUP_SIZES:
        if matrix.numel() and matrix.shape[-1] % m == 0:
            n = max(int((matrix.reshape(-1, m) != 0).sum(-1).max()), 1)
            held += [(n, m)] if n < m else []
    return min(held, key=lambda pattern: (pattern[0] / pattern[1], pattern[1]), default=None)


def interleave(matrix: Tensor, n: int, m: int) -> tuple[Tensor, Tensor]:
    """Pack a matrix that holds n:m.

    Args:
        matrix: The weight, [out, in].
        n: Kept entries of a group.
        m: Entries of a group, one of `GROUP_SIZES`.

    Returns:
        The kept entries, [row blocks, kept of a row, 16], and their positions within groups, [row blocks, words of a
        row, 16] int32. The first position is in the lowest bits of its word.

    Raises:
        ValueError: If a group holds more than n entries that are not zero, or the matrix has no whole groups.
    """
    rows, columns = matrix.shape
    if m not in GROUP_SIZES or columns % m:
        raise ValueError(f"A {rows}x{columns} weight has no {n}:{m} layout; groups of 4 or 8 that fill it are needed.")
    padded = matrix.new_zeros(rounded_up(rows, ROWS), rounded_up(columns, INPUTS))
    padded[:rows, :columns] = matrix
    groups = padded.view(len(padded), -1, m)
    kept = groups != 0
    if bool((kept.sum(-1) > n).any()):
        raise ValueError(f"The {rows}x{columns} weight does not hold {n}:{m}: a group has more than {n} non-zeros.")
    # Non-zeros first, then the first zeros, each in their own order.
    places = kept.logical_not().to(torch.int8).sort(dim=-1, stable=True).indices[..., :n].sort(-1).values
    values = groups.gather(-1, places).view(-1, ROWS, groups.shape[1] * n).transpose(1, 2)
    bits = index_bits(m)
    words = places.view(-1, ROWS, groups.shape[1] * n * bits // WORD, WORD // bits)
    shifts = torch.arange(0, WORD, bits, device=matrix.device)
    packed = (words << shifts).sum(-1)  # of int64; the last index may set the sign of a word
    return values.contiguous(), packed.transpose(1, 2).contiguous().to(torch.int32)


def deinterleave(values: Tensor, indices: Tensor, layout: Layout) -> Tensor:
    """Return the matrix that was packed.

    Args:
        values: The kept entries.
        indices: Their places.
        layout: The numbers of the weight.
    """
    n, m, out_features, in_features = layout
    blocks, kept, _ = values.shape
    shifts = torch.arange(0, WORD, index_bits(m), device=values.device)
    words = indices.transpose(1, 2).reshape(blocks * ROWS, -1, 1)
    places = (words >> shifts).bitwise_and_(m - 1).reshape(blocks * ROWS, kept // n, n)
    rows = values.transpose(1, 2).reshape(blocks * ROWS, kept // n, n)
    groups = rows.new_zeros(blocks * ROWS, kept // n, m).scatter_(-1, places.long(), rows)
    return groups.flatten(1)[:out_features, :in_features].contiguous()
