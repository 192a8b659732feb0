"""Algorithms of cuSPARSELt: their numbers differ in speed by shape, so they are searched for, and kept on disk."""

import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants

logger = logging.getLogger("nxm_hf")
FORMAT = 1
LEAST_TOKENS = 8


@dataclass(frozen=True)
class Installation:
    """Name the device and library that the numbers of algorithms depend on, beside the product.

    Args:
        gpu: The name of the GPU.
        cusparselt: The version of cuSPARSELt, or None if torch has none.
        torch_version: The version of torch.
    """

    gpu: str
    cusparselt: int | None
    torch_version: str

    @classmethod
    def of(cls, device: torch.device) -> "Installation":
        """Describe the installation for a GPU of this machine.

        Args:
            device: The GPU.
        """
        return cls(torch.cuda.get_device_name(device), torch.backends.cusparselt.version(), str(torch.__version__))


@dataclass(frozen=True)
class Product:
    """A product that an algorithm is searched for.

    Args:
        dtype: The type of the weight and the inputs.
        shape: The shape (out, in) of the weight.
        bias: Whether a bias is added.
        tokens: The number of tokens, one that `rounded_tokens` returns.
    """

    dtype: torch.dtype
    shape: tuple[int, int]
    bias: bool
    tokens: int

    def __str__(self) -> str:
        bias = "with bias" if self.bias else "without bias"
        return f"{str(self.dtype).removeprefix('torch.')} {self.shape[0]}x{self.shape[1]} {bias}, {self.tokens} tokens"


def rounded_tokens(tokens: int) -> int:
    """Return the number of tokens that stands for similar ones: the next power of two, and at least 8.

    Args:
        tokens: The number of tokens.

    Example:
        >>> [rounded_tokens(tokens) for tokens in (1, 8, 9, 128, 129)]
        [8, 8, 16, 128, 256]
    """
    return max(LEAST_TOKENS, 1 << (tokens - 1).bit_length())


def cache_folder() -> Path:
    """Return the folder of caches, beside those of other Hugging Face libraries; HF_HOME moves all of them."""
    return Path(constants.HF_HOME) / "nxm_hf"


class AlgorithmCache:
    """The numbers of algorithms that were found, in a JSON file for each installation.

    A file that is damaged, or of another installation, is ignored, and replaced when a number is added.

    Args:
        installation: The installation.
        folder: The folder of the file, such as that of `cache_folder`.
    """

    def __init__(self, installation: Installation, folder: Path) -> None:
        self.header: dict[str, Any] = {"format": FORMAT, **asdict(installation)}
        digest = hashlib.sha256(json.dumps(self.header, sort_keys=True).encode()).hexdigest()
        self.path = folder / f"cusparselt-{digest[:16]}.json"
        self._found = self._read()

    def find(self, product: Product, search: Callable[[], int]) -> int:
        """Return the number of the algorithm for a product, and search for it if it is not known.

        Args:
            product: The product.
            search: Search for it.
        """
        key = str(product)
        if key not in self._found:
            self._found[key] = int(search())
            self._write()
        return self._found[key]

    def _read(self) -> dict[str, int]:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(content, dict):
            return {}
        found = content.pop("algorithms", None)
        numbers = list(found.values()) if isinstance(found, dict) else [None]
        is_ours = content == self.header and all(type(number) is int and number >= 0 for number in numbers)
        return found if is_ours and isinstance(found, dict) else {}

    def _write(self) -> None:
        """Write the file atomically, with the entries that other processes have added since it was read."""
        self._found = {**self._read(), **self._found}
        content = {**self.header, "algorithms": self._found}
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}-{threading.get_ident()}.writing")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(content, indent=1, sort_keys=True), encoding="utf-8")
            os.replace(temporary, self.path)
        except OSError as error:
            _warn(str(self.path), str(error))


@cache
def _warn(path: str, reason: str) -> None:
    """Log once that a file cannot be written."""
    logger.warning("%s cannot be written (%s); algorithms are searched for again next time.", path, reason)
