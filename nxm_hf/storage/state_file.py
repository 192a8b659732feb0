"""The state of a training: tensors and a JSON header, in one dict or in one safetensors file."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nxm_hf.layers.sharding import whole
from nxm_hf.storage.file_digest import WriteDigest
from nxm_hf.storage.replacing import sync
from nxm_hf.storage.weight_writer import Entry, type_name, write_tensors

logger = logging.getLogger("nxm_hf")
STATE_FILE = "nxm_state.safetensors"
FORMAT = 1
Header = dict[str, Any]
Tensors = dict[str, Tensor]


def pack(header: Header, tensors: Mapping[str, Tensor]) -> Tensors:
    """Put header and tensors into one dict of tensors, which `torch.save` and safetensors both can write.

    Args:
        header: The header of the state; must fit JSON.
        tensors: The tensors.

    Returns:
        The dict.
    """
    text = json.dumps(header).encode()
    return {"header": torch.frombuffer(bytearray(text), dtype=torch.uint8), **tensors}


def unpack(state: Tensors) -> tuple[Header, Tensors]:
    """Take apart what `pack` has put together.

    Args:
        state: The dict.

    Returns:
        The header and the tensors.

    Raises:
        ValueError: If the dict has no header.
    """
    if "header" not in state:
        raise ValueError("This is not a state of nxm_hf: it has no header. Give what engine.state_dict() returned.")
    header = json.loads(state["header"].cpu().numpy().tobytes())
    return header, {name: tensor for name, tensor in state.items() if name != "header"}


def by_layer(tensors: Mapping[str, Tensor]) -> dict[str, Tensors]:
    """Group tensors named such as "encoder.layer.0.output.dense/mask" by layer.

    Args:
        tensors: The tensors by "layer/slot".

    Returns:
        For each layer its tensors by slot.
    """
    states: dict[str, Tensors] = {}
    for name, tensor in tensors.items():
        layer, slot = name.rsplit("/", 1)
        states.setdefault(layer, {})[slot] = tensor
    return states


def check_same_run(saved: Header, current: Header) -> None:
    """Raise unless a state is of a run with the same recipe, pattern and layers. Warn if its settings differ.

    Args:
        saved: The header of the state.
        current: The header of this run.

    Raises:
        ValueError: If recipe, pattern or layers differ.
    """
    for key in ("recipe", "pattern"):
        if current["config"][key] != saved["config"][key]:
            raise ValueError(
                f"The state is of {key} {saved['config'][key]!r} and this run has {current['config'][key]!r}; they "
                f"must match. Resume with {key}={saved['config'][key]!r}, or start from the weights alone."
            )
    if current["layers"] != saved["layers"]:
        differing = sorted({*current["layers"].items()} ^ {*saved["layers"].items()})
        names = ", ".join(dict.fromkeys(name for name, _ in differing))
        raise ValueError(f"The state is of other layers than this run: see {names}. Check include and exclude.")
    for key in ("settings", "warmup", "settle"):
        if current["config"][key] != saved["config"][key]:
            logger.warning(
                "Resuming with %s=%s; the state was made with %s.", key, current["config"][key], saved["config"][key]
            )
    if current["total_steps"] != saved["total_steps"]:
        logger.warning(
            "Resuming towards %d steps; the state was made for %d.", current["total_steps"], saved["total_steps"]
        )


def write_state(
    folder: str | Path, header: Header, tensors: Mapping[str, Tensor], file_digest: WriteDigest | None = None
) -> None:
    """Write the state file of a checkpoint. If the process is killed meanwhile, the old file stays, or no file.

    Args:
        folder: The checkpoint; it is created if needed.
        header: The header of the state; must fit JSON.
        tensors: The tensors. Each is looked up twice, and one is in memory at a time.
        file_digest: It is given the bytes of the file.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    header = {"format": FORMAT, **header}
    packed, digest, entries = pack(header, {}), _Digest(), []
    for name in sorted([*packed, *tensors]):  # as `fingerprint` sorts them, but one at a time
        tensor = packed[name] if name in packed else tensors[name]
        digest.add(name, tensor)
        if name not in packed:
            entries.append(Entry(name, type_name(tensor.dtype), tuple(tensor.shape)))
    header["state"] = digest.hexdigest()
    temporary = folder / f".{STATE_FILE}.writing"
    write_tensors(temporary, entries, lambda name: tensors[name].cpu(), {"nxm_state": json.dumps(header)}, file_digest)
    sync(temporary)
    os.replace(temporary, folder / STATE_FILE)
    sync(folder)


def read_header(folder: str | Path) -> Header:
    """Read the header of a checkpoint's state.

    Args:
        folder: The checkpoint.

    Returns:
        The header.

    Raises:
        FileNotFoundError: If there is no state file.
        ValueError: If the file is torn, foreign, damaged, or of a newer version.
    """
    path = Path(folder) / STATE_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no {STATE_FILE}: a plain Trainer wrote it, or save_only_model=True did. Resume from another "
            "checkpoint, or load its weights with from_pretrained and train anew."
        )
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is torn ({error}). Resume from an older checkpoint.") from error
    if "nxm_state" not in metadata:
        raise ValueError(f"{path} was not written by nxm_hf. Resume from a checkpoint of NxMTrainer or NxMCallback.")
    try:
        header = json.loads(metadata["nxm_state"])
        if not isinstance(header, dict) or type(header.get("format", FORMAT)) is not int:
            raise ValueError("its header is no object with a format")
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is damaged ({reason}). Resume from another checkpoint.") from error
    if header.get("format", FORMAT) > FORMAT:
        raise ValueError(f"{path} has format {header['format']}; this nxm_hf reads {FORMAT}. Install a newer nxm-hf.")
    return header


def read_state(folder: str | Path, cut: Callable[[str, Tensor], Tensor] | None = None) -> tuple[Header, Tensors]:
    """Read the state of a checkpoint, and check it against its fingerprint.

    Args:
        folder: The checkpoint.
        cut: Returns what to keep of a tensor, given its name; by default all.

    Returns:
        The header and the tensors.

    Raises:
        FileNotFoundError: If there is no state file.
        ValueError: If the file is torn, foreign, damaged, or of a newer version.
    """
    header = read_header(folder)
    saved, tensors, digest = header.pop("state", None), {}, _Digest()
    with safe_open(Path(folder) / STATE_FILE, "pt") as file:
        packed = pack(header, {})
        for name in sorted([*packed, *file.keys()]):  # as `fingerprint` sorts them, but one at a time
            tensor = packed[name] if name in packed else file.get_tensor(name)
            digest.add(name, tensor)
            if name not in packed:
                tensors[name] = tensor if cut is None else cut(name, tensor)
    if saved != digest.hexdigest():
        raise ValueError(
            f"{Path(folder) / STATE_FILE} is damaged: its fingerprint differs. Resume from another checkpoint."
        )
    return header, tensors


def fingerprint(named: Iterable[tuple[str, Tensor]]) -> str:
    """Return the SHA-256 of tensors: their names, types, shapes and bytes, in the order of the names.

    Args:
        named: Pairs of name and tensor.

    Returns:
        The digest in hexadecimal.
    """
    digest = _Digest()
    for name, tensor in sorted(named, key=lambda pair: pair[0]):
        digest.add(name, tensor)
    return digest.hexdigest()


class _Digest:
    """The SHA-256 of tensors that are added one at a time."""

    def __init__(self) -> None:
        self._sha = hashlib.sha256()
        self.hexdigest = self._sha.hexdigest

    def add(self, name: str, tensor: Tensor) -> None:
        """Add the name, type, shape and bytes of a tensor; of a sharded one, every process adds the whole."""
        self._sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        flat = whole(tensor).detach().cpu().contiguous().reshape(-1)
        # numpy arrays are buffers, but numpy's stubs say so only from Python 3.12 on
        self._sha.update(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]
