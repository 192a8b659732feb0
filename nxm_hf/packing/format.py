"""The packed form of an N:M matrix: its kept values, and where in each group they stand.

`values` is [out, in / m * n], in the type of the matrix. `indices` is uint8: the position of each value in its group,
in ceil(log2(m)) bits, low bits first. Each row is padded to full bytes with zero bits. Positions ascend in a group. A
group with fewer than n non-zeros also stores zeros, at its lowest free positions. An entry is a zero if all of its bits
are 0, so -0.0 and NaN survive, and packing loses nothing.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from nxm_hf.patterns import NM, Pattern, Transposable, parse

_CHUNK = 1 << 18  # entries of the matrix that are worked on at a time; it limits the scratch memory
_BITS_OF = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the bytes of an entry


class PackedMatrix(NamedTuple):
    """Hold the two tensors of a packed matrix.

    Args:
        values: Kept values, [out, in / m * n].
        indices: Positions of the values in their groups, as packed bits, uint8.
    """

    values: Tensor
    indices: Tensor


def row_pattern(pattern: Pattern | str) -> NM | None:
    """Return the N:M that each row of a matrix with this pattern holds.

    Args:
        pattern: A pattern, or its text.

    Returns:
        The pattern of a row, or None for a pattern that is not N:M along a row and cannot be packed.

    Example:
        >>> row_pattern("2:4-transposable"), row_pattern("unstructured:0.5")
        (NM(n=2, m=4), None)
    """
    pattern = parse(pattern)
    return pattern.side if isinstance(pattern, Transposable) else pattern if isinstance(pattern, NM) else None


def index_bits(m: int) -> int:
    """Return the number of bits that hold a position in a group.

    Args:
        m: Entries of a group.

    Example:
        >>> index_bits(4), index_bits(5), index_bits(256)
        (2, 3, 8)
    """
    return (m - 1).bit_length()


def packed_shapes(shape: tuple[int, int], pattern: NM) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the shapes of the values and of the indices.

    Args:
        shape: Shape of the matrix, [out, in].
        pattern: The pattern of a row.

    Raises:
        ValueError: If the pattern does not fit the shape.

    Example:
        >>> packed_shapes((8, 64), NM(2, 4))
        ((8, 32), (8, 8))
    """
    pattern.check(shape)
    kept = shape[1] // pattern.m * pattern.n
    return (shape[0], kept), (shape[0], -(-kept * index_bits(pattern.m) // 8))


@torch.no_grad()
def pack(matrix: Tensor, pattern: NM, name: str = "this matrix") -> PackedMatrix:
    """Pack a matrix.

    Args:
        matrix: The matrix, [out, in]. It is not changed.
        pattern: The pattern of a row.
        name: Name of the layer, for the error.

    Returns:
        Its values and indices, on the same device.

    Raises:
        ValueError: If the matrix does not hold the pattern.

    Example:
        >>> pack(torch.tensor([[0.0, 3.0, 0.0, 5.0]]), NM(2, 4))
        PackedMatrix(values=tensor([[3., 5.]]), indices=tensor([[13]], dtype=torch.uint8))
    """
    shape = (matrix.shape[0], matrix.shape[1])
    values_shape, indices_shape = packed_shapes(shape, pattern)
    values, indices = matrix.new_empty(values_shape), matrix.new_empty(indices_shape, dtype=torch.uint8)
    for rows in _chunks(shape):
        groups = _as_bits(matrix.detach()[rows]).reshape(-1, shape[1] // pattern.m, pattern.m)
        kept = groups != 0
        if broken := int((kept.sum(-1) > pattern.n).sum()):
            raise ValueError(
                f"{name} breaks {pattern} in {broken} groups, so it cannot be packed. Prune it again: "
                f"nxm convert MODEL OUT --to {pattern}."
            )
        positions = _kept_positions(kept, pattern.n)
        _as_bits(values)[rows] = groups.gather(-1, positions).flatten(1)
        indices[rows] = _pack_bits(positions.flatten(1), index_bits(pattern.m))
    return PackedMatrix(values, indices)


@torch.no_grad()
def unpack(values: Tensor, indices: Tensor, pattern: NM, out: Tensor | None = None) -> Tensor:
    """Unpack a matrix. The indices are not checked; `check_packed` does that.

    Args:
        values: Kept values.
        indices: Their positions, as packed bits.
        pattern: The pattern of a row.
        out: A matrix [out, in] to write into, on the device and in the type of the values. By default a new one.

    Returns:
        The matrix, [out, in].

    Example:
        >>> unpack(*pack(torch.tensor([[0.0, 3.0, 0.0, 5.0]]), NM(2, 4)), NM(2, 4))
        tensor([[0., 3., 0., 5.]])
    """
    groups = values.shape[1] // pattern.n
    shape = (values.shape[0], groups * pattern.m)
    matrix = values.new_empty(shape) if out is None else out
    entries, bits = _as_bits(matrix), _as_bits(values.detach())
    for rows in _chunks(shape):
        positions = _read_bits(indices[rows], index_bits(pattern.m), values.shape[1])
        dense = entries[rows].zero_().unflatten(1, (groups, pattern.m))
        dense.scatter_(-1, positions.view(-1, groups, pattern.n).long(), bits[rows].reshape(-1, groups, pattern.n))
    return matrix


@torch.no_grad()
def check_packed(values: Tensor, indices: Tensor, pattern: NM, shape: tuple[int, int], name: str) -> None:
    """Raise unless two tensors are the packed form of a matrix.

    Args:
        values: Kept values.
        indices: Their positions, as packed bits.
        pattern: The pattern of a row.
        shape: Shape of the matrix, [out, in].
        name: Name of the layer, for the error.

    Raises:
        ValueError: If a shape or type is wrong, or a position is out of range, out of order or repeated. Also if the
            padding bits of a row are not 0.
    """
    values_shape, indices_shape = packed_shapes(shape, pattern)
    for what, tensor, needed in (("values", values, values_shape), ("indices", indices, indices_shape)):
        if tuple(tensor.shape) != needed:
            raise _damaged(name, f"{what} have the shape {tuple(tensor.shape)}; {pattern} of {shape} needs {needed}")
    if indices.dtype != torch.uint8:
        raise _damaged(name, f"indices are {str(indices.dtype).removeprefix('torch.')}; they must be uint8")
    bits = index_bits(pattern.m)
    if 8 % (pattern.n * bits) == 0 and values_shape[1] * bits % 8 == 0:  # each byte holds whole groups
        counts = torch.bincount(indices.flatten(), minlength=256)
        if not bool(counts[_invalid_bytes(pattern).to(indices.device)].any()):
            return
    for rows in _chunks(shape):
        positions = _read_bits(indices[rows], bits, values_shape[1]).unflatten(1, (-1, pattern.n))
        if int((positions > pattern.m - 1).sum()):
            raise _damaged(name, f"indices reach {int(positions.max())}; those of {pattern} end at {pattern.m - 1}")
        if int(_out_of_order(positions).sum()):
            raise _damaged(name, "indices do not ascend in each group")
    used = values_shape[1] * bits % 8  # bits of the last byte of a row
    if used and int((indices[:, -1] >> used).count_nonzero()):
        raise _damaged(name, "indices do not end with zero bits in each row")


@lru_cache
def _invalid_bytes(pattern: NM) -> Tensor:
    """Return which of the 256 bytes hold a position out of range or out of order, for bytes of whole groups."""
    bits = index_bits(pattern.m)
    positions = _read_bits(torch.arange(256, dtype=torch.uint8)[:, None], bits, 8 // bits).unflatten(1, (-1, pattern.n))
    return ((positions > pattern.m - 1).flatten(1).any(-1)) | _out_of_order(positions).flatten(1).any(-1)


def _out_of_order(positions: Tensor) -> Tensor:
    return positions[..., 1:] <= positions[..., :-1]


def _damaged(name: str, problem: str) -> ValueError:
    return ValueError(f"{name} is damaged: its packed {problem}. Copy or download the file again, or pack it again.")


def _chunks(shape: tuple[int, int]) -> Iterator[slice]:
    """Yield slices of rows that hold about `_CHUNK` entries each."""
    if 0 in shape:
        return
    step = max(_CHUNK // shape[1], 1)
    yield from (slice(start, start + step) for start in range(0, shape[0], step))


def _as_bits(tensor: Tensor) -> Tensor:
    """View the entries as whole numbers of the same size, so that -0.0, NaN and types of 8 bits are copied as bits."""
    return tensor.view(_BITS_OF[tensor.element_size()])


def _kept_positions(kept: Tensor, n: int) -> Tensor:
    """Return n ascending positions for each group: those of its kept entries, and then the lowest free ones."""
    m = kept.shape[-1]
    rank = torch.arange(m, dtype=torch.int16, device=kept.device) + (~kept).to(torch.int16) * m
    return rank.argsort(-1)[..., :n].sort(-1).values


def _pack_bits(positions: Tensor, bits: int) -> Tensor:
    """Pack rows of positions into rows of bytes."""
    single = positions.to(torch.uint8).unsqueeze(-1) >> _range(bits, positions) & 1
    row = torch.nn.functional.pad(single.flatten(1), (0, -positions.shape[1] * bits % 8))
    return (row.unflatten(1, (-1, 8)) << _range(8, positions)).sum(-1, dtype=torch.uint8)


def _read_bits(indices: Tensor, bits: int, count: int) -> Tensor:
    """Read `count` positions from each row of bytes, as uint8."""
    mask = (1 << bits) - 1
    if 8 % bits == 0:
        shifts = _range(8 // bits, indices) * bits
        return ((indices.unsqueeze(-1) >> shifts) & mask).flatten(1)[:, :count]
    first = torch.arange(count, device=indices.device) * bits
    words = torch.nn.functional.pad(indices, (0, 1)).to(torch.int16)
    pairs = words[:, first // 8] | words[:, first // 8 + 1] << 8
    return ((pairs >> (first % 8).to(torch.int16)) & mask).to(torch.uint8)


def _range(stop: int, like: Tensor) -> Tensor:
    return torch.arange(stop, dtype=torch.uint8, device=like.device)
