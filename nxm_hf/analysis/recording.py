"""Sampling: what AnalysisCallback writes of a training, for `nxm report` to draw."""

import json
import logging
import math
import os
import platform
import random
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from nxm_hf._version import __version__
from nxm_hf.engine.engine import Engine
from nxm_hf.engine.metrics import residual
from nxm_hf.layers.plan import Target
from nxm_hf.methods import NO_CHANGE, State
from nxm_hf.storage.state_file import by_layer

logger = logging.getLogger("nxm_hf")
ANALYSIS_FILE = "nxm_analysis.json"
FORMAT = 1
FOLLOWED = 128  # weights of each layer whose places in the mask are kept, and their first and last values
MOVING = 8  # of these, how many whose way is kept look by look
RECORDS = 400  # at most; then every second one is dropped, and from there on every second logging step is passed over
SIDE = 64  # of the excerpt of a mask
BINS, WIDEST = 40, 4.0  # of the histograms of |w| / rms(w); the last bin also holds what is larger
BINNED = 2**16  # weights of a layer, about, that a histogram counts
Words = dict[str, Any]


def record(words: Words, engine: Engine, step: int, output_dir: str | Path) -> None:
    """Look, and write all that was seen so far."""
    look(words, engine, step)
    path = Path(output_dir) / ANALYSIS_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{ANALYSIS_FILE}.writing")  # so that a kill leaves the older file whole
    temporary.write_text(json.dumps(words, allow_nan=False), encoding="utf-8")
    os.replace(temporary, path)


def is_due(words: Words, step: int) -> bool:
    """Whether this logging step is one to look at: every one, until there are many."""
    return not words["records"] or step >= words["records"][-1]["step"] + words["gap"]


def opened(output_dir: str | Path, step: int, engine: Engine, seed: int) -> Words:
    """What an earlier part of this training has written, or else what is known before anything was looked at."""
    return resumed(output_dir, step, engine) or begun(engine, seed)


def resumed(output_dir: str | Path, step: int, engine: Engine) -> Words | None:
    """What an earlier part of this training has written, up to the step that it is resumed at."""
    path = Path(output_dir) / ANALYSIS_FILE
    if step == 0 or not path.is_file():
        return None
    try:
        words = json.loads(path.read_text(encoding="utf-8"))
        known = {name: layer["pattern"] for name, layer in words["layers"].items()}
        words["records"] = [record for record in words["records"] if record["step"] <= step]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        logger.warning("%s is torn (%r) and is begun anew.", path, error)
        return None
    return words if known == engine.plan.layers else None


# -- what is seen ------------------------------------------------------------------------------------------------------


def begun(engine: Engine, seed: int) -> Words:
    """What is known before anything was looked at: the layers, and which of their weights are followed."""
    layers = {}
    for target in engine.plan.targets:
        # A generator of its own, from the seed and the name: the global ones are the training's.
        chance = random.Random(f"{seed} {target.name}")
        layers[target.name] = {
            "role": target.layer.role,
            "pattern": str(target.pattern),
            "shape": list(target.layer.shape),
            "index": sorted(chance.sample(range(target.numel), min(FOLLOWED, target.numel))),
        }
    return {"format": FORMAT, "environment": _environment(engine), "gap": 1, "layers": layers, "records": []}


@torch.no_grad()
def look(words: Words, engine: Engine, step: int) -> None:
    """Add a record of this step, and renew what is kept of the latest one only."""
    states = by_layer(engine.tensors())
    seen = [(target, *_weight_and_mask(target, states[target.name])) for target in engine.plan.targets]
    if any(weight is None for _, weight, _ in seen):
        return  # what is not finite is no matter for a log to fail over; the next mask refuses NaN, and says where
    lists: Words = {name: [] for name in ("residual", "density", "flips", "in_mask", "way")}
    seen_now: Words = {"step": step, "phase": engine.phase, **lists}
    for target, weight, mask in seen:
        came, left, _ = states[target.name].get("moved", NO_CHANGE).tolist()
        seen_now["residual"].append(residual([(target, weight)]))
        seen_now["density"].append(int(mask.count_nonzero()) / target.numel)
        seen_now["flips"].append((came + left) / target.numel)
        layer = words["layers"][target.name]
        seen_now["in_mask"].append(_follow(layer, weight, mask))
        pairs = zip(layer["first"][:MOVING], layer["last"], strict=False)
        seen_now["way"].append([float(f"{last - first:.6g}") for first, last in pairs])
    words["magnitudes"] = _magnitudes([(weight, mask) for _, weight, mask in seen])
    words["excerpt"] = {"layer": seen[0][0].name, "rows": _excerpt(seen[0][2])}
    words["records"] = [*words["records"], seen_now]
    _thin(words)


def _weight_and_mask(target: Target, state: State) -> tuple[Tensor | None, Tensor | None]:
    """What the optimizer trains, and the mask in use; where there is none yet, the one that would be shipped."""
    weight = state.get("dense", state["weight"])
    if not weight.square().sum().isfinite():
        return None, None
    # The mask of ADMM's last update is that of the sizes of its R.
    return weight, state["mask"] if "mask" in state else target.pattern.largest(state.get("r", weight))


def _follow(layer: Words, weight: Tensor, mask: Tensor) -> str:
    """Renew the values of the weights that are followed; returns which of them are in the mask, as hexadecimal bits."""
    index = torch.tensor(layer["index"], device=weight.device)
    layer["last"] = weight.take(index).tolist()
    layer.setdefault("first", layer["last"])
    bits = "".join("01"[kept] for kept in mask.take(index).tolist())
    return f"{int(bits, 2):0{math.ceil(len(bits) / 4)}x}"


def in_mask(text: str, count: int) -> list[bool]:
    """Which of the followed weights were in the mask, of what a record says.

    >>> in_mask("05", 6)
    [False, False, False, True, False, True]
    """
    return [bit == "1" for bit in f"{int(text, 16):0{count}b}"]


def _magnitudes(seen: list[tuple[Tensor, Tensor]]) -> dict[str, list[float]]:
    """How many weights have which size, in units of their layer's root mean square, kept and pruned."""
    counts = torch.zeros(2, BINS)
    for weight, mask in seen:
        stride = math.ceil(weight.numel() / BINNED)
        sizes, some = weight[::stride].abs(), mask[::stride]
        scale = sizes.square().mean().sqrt().clamp_min(torch.finfo(sizes.dtype).tiny)
        sizes = (sizes / scale).clamp_max(WIDEST).float()
        for number, chosen in enumerate((some, ~some)):
            counts[number] += torch.histc(sizes[chosen].cpu(), BINS, 0, WIDEST)
    edges = [WIDEST * edge / BINS for edge in range(BINS + 1)]
    return {"edges": edges, "kept": counts[0].tolist(), "pruned": counts[1].tolist()}


def _excerpt(mask: Tensor) -> list[str]:
    return ["".join("01"[kept] for kept in row) for row in mask[:SIDE, :SIDE].tolist()]


def _thin(words: Words) -> None:
    if len(words["records"]) > RECORDS:
        words["records"] = words["records"][::2]
        words["gap"] = words["records"][-1]["step"] - words["records"][-2]["step"]


def _environment(engine: Engine) -> dict[str, str]:
    device = next(engine.model.parameters()).device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    versions = {"nxm_hf": __version__, "torch": str(torch.__version__), "transformers": transformers.__version__}
    return {**versions, "Python": platform.python_version(), "device": name}
