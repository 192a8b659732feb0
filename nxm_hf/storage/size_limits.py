"""Size limits: a config may ask for a model only as large as the files beside it pay for."""

import math
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from nxm_hf.config.hub import model_folder, read_json
from nxm_hf.storage.weight_files import WeightFiles

MAX_COUNT = 1000  # layers or experts that a config may ask for without as many tensors
MAX_LABELS = 100_000  # labels likewise, all of which one tensor can hold: ImageNet-22k has 21,841
MAX_GROWTH = 16  # times as large as its files a model may be in memory: 4 bits become 32, and some are shared
_ALWAYS = 64 << 20  # bytes that a model may have in any case
_PARAMETERS = 8192  # parameters that a model may have in any case
_PER_TENSOR = 2  # parameters for each tensor in the files; some families save several as one
_WITHOUT_FILES = 1 << 15  # parameters of a model whose directory has no weights, for a plan of its training
_COUNTED = re.compile(r"(layers?|labels|depths?|experts|blocks)$")


def check_counts(path: Path) -> None:
    """Raise if a config asks for far more layers, labels or experts than its directory has tensors.

    Reading such a config takes time and memory that no file pays for.

    Args:
        path: A `config.json`.

    Raises:
        ValueError: If it asks for too many.
    """
    config = read_json(path.parent, path.name, {}) or {}
    asked = {key: most for key, most in _counts(config) if most > (MAX_LABELS if "labels" in key else MAX_COUNT)}
    if not asked:
        return
    tensors = _tensors(path.parent) or 0
    if beyond := [f"{key}={most:.3g}" for key, most in asked.items() if most > tensors]:
        raise ValueError(
            f"{path} asks for {', '.join(beyond)}, and the weights beside it are {tensors} tensors. Save it again."
        )


def check_bytes(folder: str | Path, model: nn.Module) -> None:
    """Raise if the weights of a model are far larger than the files of its directory. All would be in memory.

    Args:
        folder: Directory of the model.
        model: Its skeleton.

    Raises:
        ValueError: If they are.
    """
    asked = sum(math.prod(parameter.shape) for parameter in model.parameters()) * 4
    held = sum(path.stat().st_size for path in model_folder(folder).iterdir() if path.is_file())
    if asked > MAX_GROWTH * held + _ALWAYS:
        raise ValueError(
            f"{folder} asks for weights of {asked:,} bytes in its config.json, and has files of {held:,}. Save the "
            "model again."
        )


@contextmanager
def limited_parameters(path: Path) -> Iterator[None]:
    """Stop the building of a model in the block once it has far more parameters than its directory has tensors.

    Counts in a config multiply: stages of layers, and layers of experts. So the parameters themselves are counted.

    Args:
        path: The `config.json` of the model.

    Raises:
        ValueError: If the model has too many.
    """
    tensors = _tensors(path.parent)
    limit = _WITHOUT_FILES if tensors is None else max(_PARAMETERS, _PER_TENSOR * tensors)
    thread, built = threading.get_ident(), 0

    def count(*parameter: object) -> None:
        nonlocal built
        built += threading.get_ident() == thread
        if built > limit:
            raise OverflowError

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    except Exception as error:
        if built <= limit:
            raise
        beside = (
            "no weights can be read beside it. Put them there."
            if tensors is None
            else f"the weights beside it are {tensors} tensors. Save it again."
        )
        raise ValueError(f"{path} asks for more than {limit:,} parameters, and {beside}") from error
    finally:
        handle.remove()


def _tensors(folder: Path) -> int | None:
    """Return how many tensors the weight files of a directory hold, or None if they cannot be read."""
    try:
        with WeightFiles(folder) as files:
            return sum(len(names) for names in files.shards.values())
    except (OSError, ValueError):
        return None


def _counts(payload: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of a config whose key says that they count parts of the model."""
    if isinstance(payload, dict):
        for inner, value in payload.items():
            yield from _counts(value, inner)
    elif isinstance(payload, list):
        for value in payload:
            yield from _counts(value, key)
    elif isinstance(payload, int | float) and _COUNTED.search(key):
        yield key, payload if abs(payload) < 1e300 else math.inf
