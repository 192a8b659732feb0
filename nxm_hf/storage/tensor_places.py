"""The places of the tensors in a safetensors file."""

import json
from pathlib import Path
from typing import NamedTuple

from nxm_hf.storage.weight_writer import Entry

_MAX_HEADER = 100_000_000  # bytes, as in safetensors


class Place(NamedTuple):
    """Describe a tensor of a file, and where its bytes are.

    Args:
        entry: Its name, type and shape.
        begin: Where its bytes begin in the file.
        end: Where they end.
    """

    entry: Entry
    begin: int
    end: int


def tensor_places(path: Path) -> dict[str, Place]:
    """Read where the tensors of a file stand.

    Args:
        path: A file that safetensors can open.

    Returns:
        The place of each tensor by its name. A tensor whose place makes no sense is left out.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size - 8, _MAX_HEADER):
            return {}
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError):
            return {}
    places = {}
    for name, words in header.items() if isinstance(header, dict) else ():
        if name != "__metadata__" and (place := _place(name, words, 8 + length)) and place.end <= size:
            places[name] = place
    return places


def _place(name: str, words: object, start: int) -> Place | None:
    """Return the place that the words of a header describe, if its size is that of the tensor."""
    try:
        entry = Entry(name, str(words["dtype"]), tuple(words["shape"]))  # type: ignore[index]
        begin, end = words["data_offsets"]  # type: ignore[index]
        numbers = (begin, end, *entry.shape)
        if all(type(number) is int and number >= 0 for number in numbers) and end - begin == entry.nbytes:
            return Place(entry, start + begin, start + end)
    except (LookupError, TypeError, ValueError):
        pass
    return None
