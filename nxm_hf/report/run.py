"""The files of a training run, as they are in the output directory of a Trainer."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from nxm_hf.analysis.recording import ANALYSIS_FILE, FORMAT
from nxm_hf.config import CONFIG_FILE
from nxm_hf.storage.checkpoints import LAST_WRITTEN, RUN_FILE, is_checkpoint
from nxm_hf.storage.verify import Verification, verify
from nxm_hf.storage.weight_files import holds_weights

SPEED_METRICS = ("_runtime", "_per_second")  # endings of evaluation keys that are not about quality


@dataclass(frozen=True)
class Run:
    """A training run.

    Args:
        name: Its name in the report.
        folder: The output directory of its Trainer.
        state: The content of the newest trainer_state.json.
        config: The content of nxm_config.json; empty if there is none.
        facts: The content of nxm_run.json; empty if there is none.
        analysis: The content of nxm_analysis.json (see `analysis.recording.Recording`); empty if there is none.
        model: The directory of its newest model, if one was saved.
        verified: The verification of that model, or a sentence why there is none.
    """

    name: str
    folder: Path
    state: dict[str, Any]
    config: dict[str, Any]
    facts: dict[str, Any]
    analysis: dict[str, Any]
    model: Path | None
    verified: Verification | str

    @property
    def used_nxm(self) -> bool:
        """Return whether the training used nxm_hf; a dense run to compare with did not."""
        return bool(self.config or self.analysis or self.points("nxm/density"))

    def points(self, key: str) -> list[tuple[int, float]]:
        """Return the finite values of a key of the Trainer's log.

        Args:
            key: The key, such as "loss".

        Returns:
            (step, value) of each record that has one.
        """
        values = [(record.get("step", 0), record.get(key)) for record in self.state["log_history"]]
        return [(step, value) for step, value in values if isinstance(value, (int, float)) and isfinite(value)]

    def last(self, key: str) -> float | None:
        """Return the last finite value of a key of the Trainer's log.

        Args:
            key: The key, such as "loss".
        """
        points = self.points(key)
        return points[-1][1] if points else None

    @property
    def evaluations(self) -> list[str]:
        """Return the keys of evaluation metrics, without those that measure its speed."""
        keys = dict.fromkeys(key for record in self.state["log_history"] for key in record)
        return [key for key in keys if key.startswith("eval_") and not key.endswith(SPEED_METRICS) and self.points(key)]

    @property
    def steps(self) -> int:
        """Return the number of optimizer steps done."""
        return self.state.get("global_step", 0)

    @property
    def is_finished(self) -> bool:
        """Return whether the training came to its end; one that was stopped early on purpose has done so too."""
        planned = self.state.get("max_steps") or 0
        return 0 < planned <= self.steps or any("train_runtime" in record for record in self.state["log_history"])

    @property
    def progress(self) -> str:
        """Return how far the training came, in words."""
        done = f"{self.steps} of {self.state.get('max_steps') or '?'} steps"
        return f"finished, {done}" if self.is_finished else f"unfinished, {done}"

    @property
    def model_name(self) -> str:
        """Return a name for the newest saved model: the final one, or a checkpoint."""
        if self.model is None:
            return "no model"
        if self.model == self.folder:
            return "final model" if self.is_finished else "model in the output directory"
        return self.model.name

    def recorded(self, key: str) -> list[tuple[int, list[Any]]]:
        """Return the records of AnalysisCallback under a key.

        Args:
            key: A key of `analysis.recording.StepRecord` that has a value for each layer.

        Returns:
            (step, the values of the layers) of each record that has the key.
        """
        return [(record["step"], record[key]) for record in self.analysis.get("records", []) if key in record]


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Read the runs of a report.

    Args:
        folders: The output directories of their Trainers.

    Raises:
        ValueError: if a file is damaged, a log is empty, a directory is named twice or no run used nxm_hf.
        FileNotFoundError: if a directory holds no log of a Trainer.
    """
    names = _names([Path(folder) for folder in folders])
    runs = [read_run(folder, name) for folder, name in zip(folders, names, strict=True)]
    for run in runs:
        if not run.state["log_history"]:
            raise ValueError(f"The log of {run.folder} is empty. Train with logging_steps below the number of steps.")
    if not any(run.used_nxm for run in runs):
        raise ValueError(
            f"{runs[0].folder} is of a training without nxm_hf: it has no {CONFIG_FILE}, no {ANALYSIS_FILE} and no "
            "nxm/ metrics in its log. Train with NxMTrainer or NxMCallback, or name such a run beside it."
        )
    return runs


def _names(folders: list[Path]) -> list[str]:
    """Return the last component of each path, or the complete path where that component is not unique."""
    last = [folder.resolve().name for folder in folders]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ValueError(f"The same directory is named twice: {', '.join(map(str, folders))}. Name each run once.")
    return [name if last.count(name) == 1 else str(folder) for name, folder in zip(last, folders, strict=True)]


def read_run(folder: str | Path, name: str | None = None) -> Run:
    """Read the run of a directory.

    Args:
        folder: The output directory of its Trainer.
        name: Its name in the report; by default that of the directory.

    Raises:
        ValueError: if a file is damaged.
        FileNotFoundError: if the directory holds no log of a Trainer.
    """
    folder = Path(folder)
    checkpoints = sorted(
        (path for path in folder.glob("checkpoint-*") if is_checkpoint(path) and path.is_dir()),
        key=lambda path: -int(path.name.removeprefix("checkpoint-")),
    )
    newest_first = [folder, *checkpoints]
    configs = (directory / CONFIG_FILE for directory in newest_first)
    config = next((path for path in configs if path.is_file()), None)
    model = next((directory for directory in newest_first if holds_weights(directory)), None)
    return Run(
        name=name or folder.resolve().name,
        folder=folder,
        state=_read_state(folder, newest_first),
        config=_read_json(config) if config else {},
        facts=_read_json(folder / RUN_FILE) if (folder / RUN_FILE).is_file() else {},
        analysis=_read_analysis(folder / ANALYSIS_FILE),
        model=model,
        verified=_verify(model),
    )


def _read_state(folder: Path, directories: list[Path]) -> dict[str, Any]:
    """Return the Trainer's state with the most steps."""
    files = [directory / LAST_WRITTEN for directory in directories if (directory / LAST_WRITTEN).is_file()]
    if not files:
        raise FileNotFoundError(
            f"{folder} holds no {LAST_WRITTEN}, and no checkpoint with one; give the output_dir of a Trainer. "
            "Without checkpoints, trainer.save_state() writes it."
        )
    states = [(path, _read_json(path)) for path in files]
    path, state = max(states, key=lambda path_and_state: path_and_state[1].get("global_step", 0))
    log = state.get("log_history")
    if not isinstance(log, list) or not all(isinstance(record, dict) for record in log):
        raise ValueError(f"{path} has no log_history; it must be a file that a Trainer wrote. Restore it.")
    return state


def _read_analysis(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    analysis = _read_json(path)
    if analysis.get("format") != FORMAT:
        raise ValueError(f"{path} has format {analysis.get('format')!r}; this nxm_hf reads {FORMAT}. Remove the file.")
    if missing := {"environment", "layers", "records", "magnitudes", "excerpt"} - analysis.keys():
        raise ValueError(f"{path} lacks {', '.join(sorted(missing))}, so it is damaged. Remove the file.")
    return analysis


def _read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object of a file, or raise if it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is torn ({error}). Restore the file, or remove its directory.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; it must be an object. Restore the file.")
    return content


def _verify(model: Path | None) -> Verification | str:
    """Return the verification of a model, or a sentence why there is none."""
    if model is None:
        return "No model was saved in this directory."
    try:
        return verify(model)
    except (OSError, ValueError) as error:
        return f"Not verified: {' '.join(str(error).split())}"
