"""Trials: one training each, with all that decides its result, and the command line that runs it."""

import contextlib
import hashlib
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from nxm_hf import NxMConfig

from .example_scripts import SQUAD, script_of
from .model_shapes import Shape, narrower_shape
from .recipe_text import belongs_to_recipe, is_small, parse_value, read_recipe, read_teaching

DATASET = ("--dataset_name", "rajpurkar/squad")  # unless another one follows
HELD_OUT = 0.1  # the fraction of the training rows that settings are chosen on
Point = tuple[tuple[str, str], ...]  # options of `run_glue.py` or settings of the recipe, with their values


@dataclass(frozen=True)
class Trial:
    """One training: all that decides its result.

    Its name is a hash of its fields, and records on disk hold them by name. So the fields may not be renamed.
    """

    task: str
    recipe: str  # as it was written
    seed: int
    grid: Point = ()
    hold_out: float = 0.0
    model: str = ""
    more: tuple[str, ...] = ()  # options of `run_glue.py` that trials share

    @property
    def name(self) -> str:
        """Return a short name that no other trial has."""
        payload = json.dumps(asdict(self), sort_keys=True)
        return f"{self.task}-{self.recipe.split()[0]}-{self.seed}-{hashlib.sha256(payload.encode()).hexdigest()[:10]}"

    @property
    def config(self) -> NxMConfig:
        """Return the config of the recipe, with the settings that the grid chose."""
        chosen = {key: parse_value(value) for key, value in self.grid if belongs_to_recipe(key)}
        return read_recipe(self.recipe).replace(**chosen)

    @property
    def teacher(self) -> "Trial | None":
        """Return the dense trial of the same task, seed and options that this one learns from, if any."""
        if not read_teaching(self.recipe):
            return None
        grid = tuple((key, value) for key, value in self.grid if not belongs_to_recipe(key))
        return Trial(self.task, "dense", self.seed, grid, self.hold_out, self.model, self.more)

    @property
    def shape(self) -> Shape:
        """Return the model's shape; that of `small` has as many weights as the sparse model has non-zeros."""
        shape = Shape.from_options(self.model, self.task, self.more)
        return narrower_shape(shape, self.config.pattern) if is_small(self.recipe) else shape

    def command_line(self, folder: Path) -> list[str]:
        """Return the arguments that the script of the task runs this trial with.

        Args:
            folder: Where the trial writes to. Its teacher is read from beside it.
        """
        config, arguments = self.config, []
        for name in ("recipe", "pattern", "settings", "warmup", "settle"):
            value = getattr(config, name)
            arguments += [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
        for key, value in self.grid:
            arguments += [] if belongs_to_recipe(key) else [f"--{key}", value]
        arguments += ["--model_name_or_path", self.model, "--seed", str(self.seed)]
        arguments += DATASET if self.task == SQUAD else ["--task_name", self.task, "--do_train", "--do_eval"]
        arguments += ["--save_strategy", "no", "--hold_out", str(self.hold_out)]
        arguments += self.more
        if self.teacher:
            distillation = {key: value for key, value in read_teaching(self.recipe).items() if key != "teacher"}
            arguments += ["--teacher", str(folder.parent / self.teacher.name)]
            arguments += ["--distillation", json.dumps(distillation)]
        if is_small(self.recipe):
            arguments += ["--config_overrides", self.shape.overrides]
        return [*arguments, "--output_dir", str(folder)]


def check_trial(trial: Trial) -> None:
    """Check that the script of its task accepts the command line of a trial.

    Args:
        trial: The trial; nothing is run.

    Raises:
        ValueError: It does not; the message is that of the script.
    """
    if trial.task == SQUAD and is_small(trial.recipe):
        raise ValueError("The baseline 'small' has no pre-trained weights to answer questions with; leave it out.")
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            script_of(trial.task).read_options(trial.command_line(Path("out")))
    except SystemExit:
        message = errors.getvalue().strip().splitlines()[-1].partition("error: ")[2]
        raise ValueError(f"{trial.recipe} {dict(trial.grid)}: {message}; write another value.") from None
