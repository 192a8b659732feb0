"""The tables of a training's settings: all that is needed to repeat it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from nxm_hf.report.phases import config_of
from nxm_hf.report.run import Run
from nxm_hf.report.side_by_side import quantities

TRAINER_SETTINGS = ("max_steps", "num_train_epochs", "train_batch_size", "logging_steps", "eval_steps", "save_steps")
SECTIONS = ("model", "data", "optimizer", "training", "batch", "seed")  # of nxm_run.json
NOT_WRITTEN = "has no nxm_run.json, which NxMTrainer and NxMCallback write; its optimizer, seed and data are not known."


def settings_table(runs: Sequence[Run]) -> Markup:
    """Return model, data, optimizer, schedule, batch, seeds and sparsity of each run, without its layers.

    Args:
        runs: The runs, side by side.
    """
    return quantities([run.name for run in runs], [settings_of(run) for run in runs])


def settings_of(run: Run) -> dict[str, str]:
    """Return the settings of a run as text, by name.

    Args:
        run: The run.
    """
    settings: dict[str, Any] = {}
    for name in SECTIONS:
        settings |= {_title(name, key): value for key, value in run.facts.get(name, {}).items()}
    if not run.facts and (rate := max((value for _, value in run.points("learning_rate")), default=None)) is not None:
        settings["training: highest learning rate in the log"] = rate
    settings |= {f"sparsity: {key}": value for key, value in _sparsity(run).items()}
    settings |= {f"Trainer: {key}": run.state[key] for key in TRAINER_SETTINGS if key in run.state}
    return {key: as_text(value) for key, value in settings.items() if value is not None and value is not False}


def _title(section: str, key: str) -> str:
    """Return "seed" for the key "seed" of the section "seed", and "optimizer: eps" for most."""
    return key if key == section else f"{section}: {key}"


def _sparsity(run: Run) -> Mapping[str, Any]:
    """Return the config with the phases that the training had, which may be the recipe's own."""
    settings = {key: value for key, value in run.config.items() if key not in ("layers", "density")}
    if (config := config_of(run)) is not None:
        settings |= dict(zip(("warmup", "settle"), config.phases, strict=True))
    return settings


def environment_table(runs: Sequence[Run]) -> Markup:
    """Return the versions and the device of each training, or an empty text if they were not recorded.

    Args:
        runs: The runs, side by side.
    """
    columns = [run.facts.get("versions") or run.analysis.get("environment", {}) for run in runs]
    return quantities(
        [run.name for run in runs], [{key: str(value) for key, value in each.items()} for each in columns]
    )


def as_text(value: object) -> str:
    """Return a setting as text: a number in few digits, and what is nested as JSON.

    Args:
        value: The setting.

    Example:
        >>> as_text(1e-5), as_text("linear"), as_text([0.9, 0.999])
        ('1e-05', 'linear', '[0.9, 0.999]')
    """
    return value if isinstance(value, str) else json.dumps(value)
