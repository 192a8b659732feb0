"""Write a safetensors file one tensor at a time, so that only one of them is in memory."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from nxm_hf.storage.file_digest import WriteDigest

_WIDTHS = {"8": 1, "6": 2, "2": 4, "4": 8}  # by the last digit of a type such as F32 or BF16: its bytes

_KINDS = {"bfloat16": "BF16", "bool": "BOOL", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}


def type_name(dtype: torch.dtype) -> str:
    """Return the name of a type in safetensors files.

    Args:
        dtype: The type.

    Example:
        >>> type_name(torch.bfloat16), type_name(torch.float32), type_name(torch.uint8)
        ('BF16', 'F32', 'U8')
    """
    name = str(dtype).removeprefix("torch.")
    return _KINDS.get(name) or name.replace("uint", "U").replace("float", "F").replace("int", "I")


class Entry(NamedTuple):
    """Describe a tensor of a file.

    Args:
        name: Its name.
        dtype: Its type, as safetensors writes it.
        shape: Its shape.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def width(self) -> int:
        """Return the bytes of one element."""
        return 1 if self.dtype == "BOOL" or self.dtype.startswith("F8") else _WIDTHS[self.dtype[-1]]

    @property
    def nbytes(self) -> int:
        """Return the bytes of the tensor."""
        return math.prod(self.shape) * self.width


def write_tensors(
    path: Path,
    entries: Iterable[Entry],
    read: Callable[[str], Tensor],
    metadata: Mapping[str, str],
    digest: WriteDigest | None = None,
) -> None:
    """Write a file. The widest types come first, as safetensors orders them, so that every tensor is aligned.

    Args:
        path: The file to write.
        entries: Its tensors.
        read: Returns the tensor of a name. It is called once for each, in the order of the file.
        metadata: Metadata of the file.
        digest: It is given the bytes of the file.

    Raises:
        RuntimeError: If a tensor does not have the bytes that its entry promises.
    """
    ordered = sorted(entries, key=lambda entry: (-entry.width, entry.name))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for entry in ordered:
        begin, end = end, end + entry.nbytes
        header[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        start = len(text).to_bytes(8, "little") + text
        if digest is not None:
            digest.begin(len(start) + end)
            digest.add(memoryview(start))
        file.write(start)
        for entry in ordered:
            tensor = read(entry.name)
            if tensor.nbytes != entry.nbytes:
                raise RuntimeError(f"{entry.name} has {tensor.nbytes} bytes; {path} needs {entry.nbytes}.")
            if tensor.numel():
                data = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data
                if digest is not None:
                    digest.add(data)
                file.write(data)
                del data
            del tensor  # before the next is read
