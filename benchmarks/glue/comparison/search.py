"""Search: Optuna's TPE over a space of settings, on rows held out of training; studies are shared by a URL.

One trial of Optuna is one point of the space. It trains a `Trial` of this package for each seed. A small space is tried
point by point without GridSampler. That one raises a RuntimeError when the last point is told outside of `optimize`.
"""

import itertools
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .recipe_text import accepts
from .runner import Runner, TrialsFailed
from .statistics import mean, score
from .trials import Point, Trial

NO_OPTUNA = "--search needs optuna, which is not installed. Write: pip install optuna"


@dataclass(frozen=True)
class Axis:
    """The values of one setting: a range of numbers, or a list of words to choose from."""

    low: float = 0.0
    high: float = 0.0
    kind: str = "linear"  # or "log", "int", "choice"
    choices: tuple[str, ...] = ()

    @classmethod
    def read(cls, text: str) -> "Axis":
        """Return the axis of a text: `1e-5:1e-3:log`, `1:8:int`, `0:0.5` or `coupled,decoupled`.

        Args:
            text: The text.

        Raises:
            ValueError: It is not a range.

        Example:
            >>> Axis.read("1e-5:1e-3:log").kind
            'log'
        """
        if ":" not in text or "," in text:
            return cls(kind="choice", choices=tuple(text.split(",")))
        low, _, rest = text.partition(":")
        high, _, kind = rest.partition(":")
        try:
            axis = cls(float(low), float(high), kind or "linear")
        except ValueError:
            axis = cls()
        known = axis.kind in ("linear", "log", "int")
        if not known or not axis.low < axis.high or (axis.kind == "log" and axis.low <= 0):
            raise ValueError(f"{text!r} is no range; write low:high, with :log or :int after it if needed.")
        return axis

    def suggest(self, optuna_trial: Any, name: str) -> str:
        """Return a value for a trial of Optuna, as a command line has it.

        Numbers have three digits, so that the same value has the same name.

        Args:
            optuna_trial: The trial.
            name: The name of the setting.
        """
        if self.kind == "choice":
            return optuna_trial.suggest_categorical(name, self.choices)
        if self.kind == "int":
            return str(optuna_trial.suggest_int(name, int(self.low), int(self.high)))
        return f"{optuna_trial.suggest_float(name, self.low, self.high, log=self.kind == 'log'):.3g}"


Space = Mapping[str, Axis]


def read_space(texts: Sequence[str]) -> Space:
    """Return the axis of each key of a space.

    Args:
        texts: One `key=range` for each key. `sparsity.rho` is the same as `rho`.

    Raises:
        ValueError: A text does not have that form.
    """
    axes = {}
    for text in texts:
        key, _, values = text.partition("=")
        if not key or not values:
            raise ValueError(
                f"--space {text!r} is not of the form learning_rate=1e-5:1e-3:log; write a range after '='."
            )
        axes[key.removeprefix("sparsity.")] = Axis.read(values)
    return axes


@dataclass
class Search:
    """Searches the best point for each task and recipe.

    Args:
        runner: Runs the trials.
        space: The axes.
        points: How many points to try for each task and recipe.
        seeds: The seeds that each point is tried with.
        storage: The URL of Optuna's studies.
    """

    runner: Runner
    space: Space
    points: int
    seeds: Sequence[int]
    storage: str

    def run(self, trials: Sequence[Trial]) -> list[Point]:
        """Return the best point for each trial.

        Args:
            trials: One for each task and recipe. The search changes its grid and its seed.

        Raises:
            TrialsFailed: No point of a search has a score.
        """
        studies = [self.study(trial) for trial in trials]
        jobs = []
        for study, trial in zip(studies, trials, strict=True):
            left = max(self.points - len(finished(study)), 0)
            print(f"{study.study_name}: {self.points - left} of {self.points} points are tried", flush=True)
            jobs += [(study, trial)] * left
        self.runner.expected = len(jobs) * len(self.seeds)
        self.runner.map(lambda job: self._try_point(*job), jobs)
        return [self._best(study, trial) for study, trial in zip(studies, trials, strict=True)]

    def study(self, trial: Trial) -> Any:
        """Return Optuna's study of a task and recipe; it is made if it does not exist.

        Args:
            trial: The trial. Its name tells all that must be equal for points to be comparable.
        """
        optuna = import_optuna()
        space = repr(sorted(self.space.items()))
        name = f"{trial.name}-{zlib.crc32(space.encode()):08x}"
        study = optuna.create_study(study_name=name, storage=self.storage, direction="maximize", load_if_exists=True)
        # A point that runs may be one that was killed. It is queued again, after the others.
        running = optuna.trial.TrialState.RUNNING
        known = [tried.user_attrs.get("point") for tried in study.trials if tried.state != running]
        for point in self._all_points(trial):
            if as_lists(point) not in known:
                study.enqueue_trial(dict(point), user_attrs={"point": as_lists(point)})
        return study

    def ask(self, study: Any) -> Any:
        """Return a new trial of Optuna whose random numbers follow from its number.

        So two processes never try the same points, and a search can be repeated.

        Args:
            study: The study.
        """
        optuna = import_optuna()
        own = optuna.load_study(study_name=study.study_name, storage=self.storage)  # a sampler belongs to a study
        optuna_trial = own.ask()
        seed = zlib.crc32(f"{study.study_name} {optuna_trial.number}".encode())
        own.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        return optuna_trial

    def _all_points(self, trial: Trial) -> list[Point]:
        """Return every point if all can be tried: random draws would repeat some, and might miss the best."""
        axes = self._axes(trial)
        if not axes or any(axis.kind != "choice" for axis in axes.values()):
            return []
        combinations = list(itertools.product(*(axis.choices for axis in axes.values())))
        if len(combinations) > self.points:
            return []
        return [self._point(trial, dict(zip(axes, values, strict=True))) for values in combinations]

    def _try_point(self, study: Any, trial: Trial) -> None:
        if len(finished(study)) >= self.points:  # another machine has finished the search
            return
        optuna, optuna_trial = import_optuna(), self.ask(study)
        point = self._point(trial, {key: axis.suggest(optuna_trial, key) for key, axis in self._axes(trial).items()})
        optuna_trial.set_user_attr("point", as_lists(point))
        records = [self.runner.finish(replace(trial, seed=seed, grid=point)) for seed in self.seeds]
        value = math.nan if None in records else mean([score(record) for record in records if record])
        if math.isfinite(value):
            study.tell(optuna_trial, value)
        else:
            study.tell(optuna_trial, None, optuna.trial.TrialState.FAIL)

    def _axes(self, trial: Trial) -> Space:
        """Return the axes that the trial's recipe has a use for."""
        return {key: axis for key, axis in self.space.items() if accepts(trial.recipe, key)}

    def _point(self, trial: Trial, values: Mapping[str, str]) -> Point:
        """Return the trial's own point, with the values of all axes in place of its own."""
        fixed = {key: text for key, text in trial.grid if key not in values}
        return tuple({**fixed, **values}.items())

    def _best(self, study: Any, trial: Trial) -> Point:
        if not finished(study):
            logs = self.runner.folder_of(trial).parent
            raise TrialsFailed(f"No point of {study.study_name} has a score; see the logs in {logs}.")
        return tuple((key, text) for key, text in study.best_trial.user_attrs["point"])


def as_lists(point: Point) -> list[list[str]]:
    """Return a point as Optuna stores it."""
    return [list(pair) for pair in point]


def finished(study: Any) -> list[Any]:
    """Return the trials of an Optuna study that have a score."""
    return study.get_trials(deepcopy=False, states=(import_optuna().trial.TrialState.COMPLETE,))


def import_optuna() -> Any:
    """Return the module optuna, which only a search needs.

    Raises:
        ValueError: It is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise ValueError(NO_OPTUNA) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
