"""A training run, as it stands in the output directory of a Trainer."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from nxm_hf.analysis.recording import ANALYSIS_FILE, FORMAT
from nxm_hf.config import CONFIG_FILE
from nxm_hf.storage.checkpoints import LAST_WRITTEN, is_checkpoint
from nxm_hf.storage.model_files import INDEX, WEIGHTS
from nxm_hf.storage.verify import Verification, verify

Points = list[tuple[int, float]]
CLOCK = ("_runtime", "_per_second")  # how evaluations say what time they took


@dataclass(frozen=True)
class Run:
    """What the files of a run say. `model` is the directory of its newest model; `verified` is a report, or why there
    is none.
    """

    name: str
    folder: Path
    state: dict[str, Any]
    config: dict[str, Any]
    analysis: dict[str, Any]
    model: Path | None
    verified: Verification | str

    @property
    def is_ours(self) -> bool:
        """Whether anything in it is of nxm_hf; a dense run beside others is not."""
        return bool(self.config or self.analysis or self.points("nxm/density"))

    def points(self, key: str) -> Points:
        """(step, value) of each record of the log that has this key and a finite value."""
        found = [(record.get("step", 0), record.get(key)) for record in self.state["log_history"]]
        return [(step, value) for step, value in found if isinstance(value, (int, float)) and isfinite(value)]

    def last(self, key: str) -> float | None:
        """The last value of a key in the log."""
        points = self.points(key)
        return points[-1][1] if points else None

    @property
    def evaluations(self) -> list[str]:
        """The keys of evaluation metrics, without those that say how fast it was."""
        keys = dict.fromkeys(key for record in self.state["log_history"] for key in record)
        return [k for k in keys if k.startswith("eval_") and not k.endswith(CLOCK) and self.points(k)]

    @property
    def steps(self) -> int:
        """Steps done."""
        return self.state.get("global_step", 0)

    def sampled(self, key: str) -> list[tuple[int, list[float]]]:
        """(step, a value for each layer) of what AnalysisCallback has recorded."""
        return [(record["step"], record[key]) for record in self.analysis.get("records", []) if key in record]


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Read runs to draw; one of them at least must be ours."""
    names = _names([Path(folder) for folder in folders])
    runs = [read_run(folder, name) for folder, name in zip(folders, names, strict=True)]
    for run in runs:
        if not run.state["log_history"]:
            raise ValueError(f"The log of {run.folder} is empty. Train with logging_steps below the number of steps.")
    if not any(run.is_ours for run in runs):
        raise ValueError(
            f"{runs[0].folder} is of a training without nxm_hf: it has no {CONFIG_FILE}, no {ANALYSIS_FILE} and no "
            "nxm/ metrics in its log. Train with NxMTrainer or NxMCallback, or name such a run beside it."
        )
    return runs


def _names(folders: list[Path]) -> list[str]:
    """The last component of each, or the whole path where that is not enough."""
    short = [folder.resolve().name for folder in folders]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ValueError(f"The same directory is named twice: {', '.join(map(str, folders))}. Name each run once.")
    return [name if short.count(name) == 1 else str(folder) for name, folder in zip(short, folders, strict=True)]


def read_run(folder: str | Path, name: str | None = None) -> Run:
    """Read one run; its name is that of the directory, unless it is told apart by another."""
    folder = Path(folder)
    checkpoints = sorted(
        (path for path in folder.glob("checkpoint-*") if is_checkpoint(path) and path.is_dir()),
        key=lambda path: -int(path.name.removeprefix("checkpoint-")),
    )
    places = [folder, *checkpoints]
    config = next((place / CONFIG_FILE for place in places if (place / CONFIG_FILE).is_file()), None)
    model = next((place for place in places if any((place / name).is_file() for name in (WEIGHTS, INDEX))), None)
    return Run(
        name=name or folder.resolve().name,
        folder=folder,
        state=_read_state(folder, places),
        config=_object(config) if config else {},
        analysis=_read_analysis(folder / ANALYSIS_FILE),
        model=model,
        verified=_verify(model),
    )


def _read_state(folder: Path, places: list[Path]) -> dict[str, Any]:
    """The Trainer's state with the most steps."""
    files = [place / LAST_WRITTEN for place in places if (place / LAST_WRITTEN).is_file()]
    if not files:
        raise FileNotFoundError(
            f"{folder} holds no {LAST_WRITTEN}, and no checkpoint with one; give the output_dir of a Trainer. "
            "Without checkpoints, trainer.save_state() writes it."
        )
    states = [(path, _object(path)) for path in files]
    path, state = max(states, key=lambda found: found[1].get("global_step", 0))
    log = state.get("log_history")
    if not isinstance(log, list) or not all(isinstance(record, dict) for record in log):
        raise ValueError(f"{path} has no log_history; it must be a file that a Trainer wrote. Restore it.")
    return state


def _read_analysis(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    words = _object(path)
    if words.get("format") != FORMAT:
        raise ValueError(f"{path} has format {words.get('format')!r}; this nxm_hf reads {FORMAT}. Remove the file.")
    if missing := {"environment", "layers", "records", "magnitudes", "excerpt"} - words.keys():
        raise ValueError(f"{path} lacks {', '.join(sorted(missing))}, so it is damaged. Remove the file.")
    return words


def _object(path: Path) -> dict[str, Any]:
    try:
        words = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is torn ({error}). Restore it, or remove what holds it.") from error
    if not isinstance(words, dict):
        raise ValueError(f"{path} holds a {type(words).__name__}; it must be an object. Restore the file.")
    return words


def _verify(model: Path | None) -> Verification | str:
    """The verification of the newest model, or one sentence that says why there is none."""
    if model is None:
        return "No model was saved in this directory."
    try:
        return verify(model)
    except (OSError, ValueError) as error:
        return f"Not verified: {' '.join(str(error).split())}"
