"""The file `nxm_analysis.json`, which AnalysisCallback writes during a training and `nxm report` reads.

A recording holds a record of each observed step, and of the latest step also histograms and an excerpt of a mask. Of
each layer it follows a few randomly chosen weights.
"""

import json
import logging
import math
import platform
import random
from pathlib import Path
from typing import TypedDict

import torch
import transformers
from torch import Tensor

from nxm_hf._version import __version__
from nxm_hf.config.hub import write_text
from nxm_hf.engine.engine import Engine
from nxm_hf.engine.metrics import residual
from nxm_hf.layers.plan import Target
from nxm_hf.methods import NO_CHANGE, State
from nxm_hf.storage.state_file import by_layer

logger = logging.getLogger("nxm_hf")
ANALYSIS_FILE = "nxm_analysis.json"
FORMAT = 1
FOLLOWED_WEIGHTS = 128  # of each layer
TRACED_WEIGHTS = 8  # of these, how many have their value recorded at every step
MAX_RECORDS = 400  # beyond it every second record is dropped, and from then on only every second logging step recorded
EXCERPT_SIDE = 64
HISTOGRAM_BINS = 40
HISTOGRAM_MAX = 4.0  # in units of the root mean square of the layer; the last bin also holds larger weights
HISTOGRAM_SAMPLE = 2**16  # about how many weights of a layer a histogram counts


class _StepOfAnyRecipe(TypedDict):
    """One step. Lists have an entry for each layer, in the order of `Recording.layers`."""

    step: int
    phase: str
    residual: list[float]  # norm of W - P(W) over the norm of W
    density: list[float]
    flips: list[float]  # share of entries that entered or left the mask
    in_mask: list[str]  # which followed weights are in the mask, as hexadecimal bits (see `decode_in_mask`)
    way: list[list[float]]  # by how much the traced weights have moved since the first record


class StepRecord(_StepOfAnyRecipe, total=False):
    """One step, and the iteration of ADMM while that runs: its masks change from one iteration to the next only."""

    iteration: int


class _NewLayer(TypedDict):
    role: str
    pattern: str
    shape: list[int]
    index: list[int]  # of the followed weights in the flattened weight


class FollowedLayer(_NewLayer, total=False):
    """One layer, with the first and latest values of its followed weights once a step was recorded."""

    last: list[float]
    first: list[float]


class Histograms(TypedDict):
    """Counts of weights by |w| / rms(w)."""

    edges: list[float]
    kept: list[float]
    pruned: list[float]


class Excerpt(TypedDict):
    """The top left corner of a layer's mask, as rows of "0" and "1"."""

    layer: str
    rows: list[str]


class _NewRecording(TypedDict):
    format: int
    environment: dict[str, str]
    gap: int  # smallest number of steps from one record to the next
    layers: dict[str, FollowedLayer]
    records: list[StepRecord]


class Recording(_NewRecording, total=False):
    """The content of the file; histograms and excerpt are there once a step was recorded."""

    magnitudes: Histograms
    excerpt: Excerpt


def open_recording(output_dir: str | Path, step: int, engine: Engine, seed: int) -> Recording:
    """Continue the recording of a resumed training, or start a new one.

    Args:
        output_dir: The Trainer's output directory.
        step: Optimizer steps done; above 0 if the training is resumed.
        engine: The engine of the training.
        seed: The seed that chooses the followed weights.
    """
    return _resume(output_dir, step, engine) or new_recording(engine, seed)


def is_due(recording: Recording, step: int) -> bool:
    """Return whether a logging step is to be recorded.

    Args:
        recording: The recording so far.
        step: Optimizer steps done.
    """
    return not recording["records"] or step >= recording["records"][-1]["step"] + recording["gap"]


def record_step(recording: Recording, engine: Engine, step: int, output_dir: str | Path) -> None:
    """Add a record of a step and write the file.

    Args:
        recording: The recording, which is changed.
        engine: The engine of the training.
        step: Optimizer steps done.
        output_dir: The Trainer's output directory.
    """
    add_record(recording, engine, step)
    path = Path(output_dir) / ANALYSIS_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(recording, allow_nan=False))


def new_recording(engine: Engine, seed: int) -> Recording:
    """Return a recording without records, with the followed weights chosen.

    Args:
        engine: The engine of the training.
        seed: The seed that chooses the followed weights.
    """
    layers: dict[str, FollowedLayer] = {}
    for target in engine.plan.targets:
        # The global random state belongs to the training, so the choice has a generator of its own.
        generator = random.Random(f"{seed} {target.name}")
        layers[target.name] = {
            "role": target.layer.role,
            "pattern": str(target.pattern),
            "shape": list(target.layer.shape),
            "index": sorted(generator.sample(range(target.numel), min(FOLLOWED_WEIGHTS, target.numel))),
        }
    return {"format": FORMAT, "environment": _environment(engine), "gap": 1, "layers": layers, "records": []}


def _resume(output_dir: str | Path, step: int, engine: Engine) -> Recording | None:
    """Read the recording up to a step; None if there is none of this training."""
    path = Path(output_dir) / ANALYSIS_FILE
    if step == 0 or not path.is_file():
        return None
    try:
        recording: Recording = json.loads(path.read_text(encoding="utf-8"))
        patterns = {name: layer["pattern"] for name, layer in recording["layers"].items()}
        recording["records"] = [record for record in recording["records"] if record["step"] <= step]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        logger.warning("%s is torn (%r); starting a new recording.", path, error)
        return None
    return recording if patterns == engine.plan.layers else None


@torch.no_grad()
def add_record(recording: Recording, engine: Engine, step: int) -> None:
    """Add a record of the current step, and replace what is kept of the latest step only.

    Does nothing if a weight is not finite: the next mask update raises on NaN and names the layer.

    Args:
        recording: The recording, which is changed.
        engine: The engine of the training.
        step: Optimizer steps done.
    """
    states = by_layer(engine.tensors())
    current = []
    for target in engine.plan.targets:
        weight = states[target.name].get("dense", states[target.name]["weight"])
        if not weight.square().sum().isfinite():
            return
        current.append((target, weight, _current_mask(target, weight, states[target.name])))
    record: StepRecord = {
        "step": step,
        "phase": engine.phase,
        "residual": [],
        "density": [],
        "flips": [],
        "in_mask": [],
        "way": [],
    }
    if iterations := [int(state["updates"]) for state in states.values() if "updates" in state]:
        record["iteration"] = max(iterations)
    for target, weight, mask in current:
        entered, left, _ = states[target.name].get("moved", NO_CHANGE).tolist()
        record["residual"].append(residual([(target, weight)]))
        record["density"].append(int(mask.count_nonzero()) / target.numel)
        record["flips"].append((entered + left) / target.numel)
        layer = recording["layers"][target.name]
        record["in_mask"].append(_follow(layer, weight, mask))
        pairs = zip(layer["first"][:TRACED_WEIGHTS], layer["last"], strict=False)
        record["way"].append([float(f"{last - first:.6g}") for first, last in pairs])
    first_target, _, first_mask = current[0]
    recording["magnitudes"] = _histograms([(weight, mask) for _, weight, mask in current])
    recording["excerpt"] = {"layer": first_target.name, "rows": _excerpt(first_mask)}
    recording["records"] = [*recording["records"], record]
    _thin(recording)


def _current_mask(target: Target, weight: Tensor, state: State) -> Tensor:
    """Return the mask in use or, before there is one, the mask of the deployed weight."""
    if "mask" in state:
        return state["mask"]
    return target.pattern.nearest(state["r"]) if "r" in state else target.pattern.largest(weight)  # ADMM projects r


def _follow(layer: FollowedLayer, weight: Tensor, mask: Tensor) -> str:
    """Update the values of the followed weights; return which of them are in the mask, as hexadecimal bits."""
    index = torch.tensor(layer["index"], device=weight.device)
    layer["last"] = weight.take(index).tolist()
    layer.setdefault("first", layer["last"])
    bits = "".join("01"[kept] for kept in mask.take(index).tolist())
    return f"{int(bits, 2):0{math.ceil(len(bits) / 4)}x}"


def decode_in_mask(text: str, count: int) -> list[bool]:
    """Return which of the followed weights of a layer were in the mask.

    Args:
        text: The hexadecimal bits of a record.
        count: The number of followed weights.

    Example:
        >>> decode_in_mask("05", 6)
        [False, False, False, True, False, True]
    """
    return [bit == "1" for bit in f"{int(text, 16):0{count}b}"]


def _histograms(weights_and_masks: list[tuple[Tensor, Tensor]]) -> Histograms:
    """Count kept and pruned weights by magnitude in units of their layer's root mean square."""
    counts = torch.zeros(2, HISTOGRAM_BINS)
    for weight, mask in weights_and_masks:
        stride = math.ceil(weight.numel() / HISTOGRAM_SAMPLE)
        magnitudes, kept = weight[::stride].abs(), mask[::stride]
        rms = magnitudes.square().mean().sqrt().clamp_min(torch.finfo(magnitudes.dtype).tiny)
        magnitudes = (magnitudes / rms).clamp_max(HISTOGRAM_MAX).float()
        for row, selected in enumerate((kept, ~kept)):
            counts[row] += torch.histc(magnitudes[selected].cpu(), HISTOGRAM_BINS, 0, HISTOGRAM_MAX)
    edges = [HISTOGRAM_MAX * edge / HISTOGRAM_BINS for edge in range(HISTOGRAM_BINS + 1)]
    return {"edges": edges, "kept": counts[0].tolist(), "pruned": counts[1].tolist()}


def _excerpt(mask: Tensor) -> list[str]:
    return ["".join("01"[kept] for kept in row) for row in mask[:EXCERPT_SIDE, :EXCERPT_SIDE].tolist()]


def _thin(recording: Recording) -> None:
    """Drop every second record once there are too many, and record half as often from then on."""
    if len(recording["records"]) > MAX_RECORDS:
        recording["records"] = recording["records"][::2]
        recording["gap"] = recording["records"][-1]["step"] - recording["records"][-2]["step"]


def _environment(engine: Engine) -> dict[str, str]:
    """Return the versions and the device of the training."""
    device = next(engine.model.parameters()).device
    device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    versions = {"nxm_hf": __version__, "torch": str(torch.__version__), "transformers": transformers.__version__}
    return {**versions, "Python": platform.python_version(), "device": device_name}
