"""Search: Optuna's TPE over a space of settings, on rows held out of training; studies are shared by a URL."""

import itertools
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from comparing.arms import Point
from comparing.cells import Cell, takes
from comparing.measures import mean, score
from comparing.workshop import CellsFailed, Workshop

MISSING = "--search needs optuna, which is not installed. Write: pip install optuna"


@dataclass(frozen=True)
class Axis:
    """The values of one setting: a range, or some words to choose from."""

    low: float = 0.0
    high: float = 0.0
    kind: str = "linear"  # or "log", "int", "choice"
    choices: tuple[str, ...] = ()

    @classmethod
    def read(cls, text: str) -> "Axis":
        """`1e-5:1e-3:log`, `1:8:int`, `0:0.5` or `coupled,decoupled`.

        >>> Axis.read("1e-5:1e-3:log").kind
        'log'
        """
        if ":" not in text or "," in text:
            return cls(kind="choice", choices=tuple(text.split(",")))
        low, high, *kind = text.split(":")
        try:
            axis = cls(float(low), float(high), *kind)
        except (ValueError, TypeError):
            axis = cls()
        if (
            not axis.low < axis.high
            or axis.kind not in ("linear", "log", "int")
            or (axis.kind == "log" and axis.low <= 0)
        ):
            raise ValueError(f"{text!r} is no range; write low:high, with :log or :int after it where it is one.")
        return axis

    def suggest(self, trial, name: str) -> str:
        """A value as a command line has it; three digits, so that the same value has the same name."""
        if self.kind == "choice":
            return trial.suggest_categorical(name, self.choices)
        if self.kind == "int":
            return str(trial.suggest_int(name, int(self.low), int(self.high)))
        return f"{trial.suggest_float(name, self.low, self.high, log=self.kind == 'log'):.3g}"


Space = Mapping[str, Axis]


def read_space(words: Sequence[str]) -> Space:
    """The axes of `key=range` options; `sparsity.rho` is the recipe's own `rho`."""
    axes = {}
    for word in words:
        key, _, text = word.partition("=")
        if not key or not text:
            raise ValueError(
                f"--space {word!r} is not of the form learning_rate=1e-5:1e-3:log; write a range after '='."
            )
        axes[key.removeprefix("sparsity.")] = Axis.read(text)
    return axes


@dataclass
class Search:
    """A study for each task and recipe; a trial is the cells of one point, with each of the seeds."""

    workshop: Workshop
    space: Space
    trials: int
    seeds: Sequence[int]
    storage: str

    def run(self, cells: Sequence[Cell]) -> list[Point]:
        """The best point for each of these cells, whose own grid and seed a trial changes."""
        studies = [self.study(cell) for cell in cells]
        jobs = []
        for study, cell in zip(studies, cells, strict=True):
            left = max(self.trials - len(finished(study)), 0)
            print(f"{study.study_name}: {self.trials - left} of {self.trials} trials are finished", flush=True)
            jobs += [(study, cell)] * left
        self.workshop.expected = len(jobs) * len(self.seeds)
        self.workshop.spread(lambda job: self._try(*job), jobs)
        return [self._best(study, cell) for study, cell in zip(studies, cells, strict=True)]

    def study(self, cell: Cell):
        """The study of a cell, or what is there of it."""
        optuna = optuna_itself()
        # The name of the cell tells everything that must be equal for trials to be comparable.
        told = repr(sorted(self.space.items()))
        name = f"{cell.name}-{zlib.crc32(told.encode()):08x}"
        study = optuna.create_study(study_name=name, storage=self.storage, direction="maximize", load_if_exists=True)
        # One that runs may have been killed; it comes again, after the others.
        known = [
            trial.user_attrs.get("point") for trial in study.trials if trial.state != optuna.trial.TrialState.RUNNING
        ]
        for point in self._all_points(cell):
            if pairs(point) not in known:
                study.enqueue_trial(dict(point), user_attrs={"point": pairs(point)})
        return study

    def _all_points(self, cell: Cell) -> list[Point]:
        """Every point, where all can be tried: chance would try some of them twice and might leave out the best."""
        axes = self._axes(cell)
        if not axes or any(axis.kind != "choice" for axis in axes.values()):
            return []
        whole = itertools.product(*(axis.choices for axis in axes.values()))
        points = [dict(zip(axes, values, strict=True)) for values in whole]
        if len(points) > self.trials:
            return []
        return [self._point(cell, lambda key, axis, at=at: at[key]) for at in points]

    def ask(self, study):
        """A trial that draws by its number: no two processes try the same points, and a search can be repeated."""
        optuna = optuna_itself()
        own = optuna.load_study(study_name=study.study_name, storage=self.storage)  # a sampler belongs to a study
        trial = own.ask()
        seed = zlib.crc32(f"{study.study_name} {trial.number}".encode())
        own.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        return trial

    def _try(self, study, cell: Cell) -> None:
        if len(finished(study)) >= self.trials:  # by another machine, meanwhile
            return
        trial = self.ask(study)
        point = self._point(cell, lambda key, axis: axis.suggest(trial, key))
        trial.set_user_attr("point", pairs(point))
        records = [self.workshop.finish(replace(cell, seed=seed, grid=point)) for seed in self.seeds]
        found = math.nan if None in records else mean([score(record) for record in records])
        optuna = optuna_itself()
        failed = not math.isfinite(found)
        study.tell(trial, None if failed else found, optuna.trial.TrialState.FAIL if failed else None)

    def _axes(self, cell: Cell) -> Space:
        """The axes that the cell's recipe has a use for."""
        return {key: axis for key, axis in self.space.items() if takes(cell.recipe, key)}

    def _point(self, cell: Cell, value) -> Point:
        """The cell's own point, with the values of its axes."""
        axes = self._axes(cell)
        fixed = {key: text for key, text in cell.grid if key not in axes}
        return tuple({**fixed, **{key: value(key, axis) for key, axis in axes.items()}}.items())

    def _best(self, study, cell: Cell) -> Point:
        if not finished(study):
            raise CellsFailed(
                f"No trial of {study.study_name} has a score; see the logs in {self.workshop.folder}/cells."
            )
        return tuple((key, text) for key, text in study.best_trial.user_attrs["point"])


def pairs(point: Point) -> list[list[str]]:
    """A point as a study keeps it."""
    return [list(pair) for pair in point]


def finished(study) -> list:
    """The trials that have a score."""
    return study.get_trials(deepcopy=False, states=(optuna_itself().trial.TrialState.COMPLETE,))


def optuna_itself():
    """Optuna, which only a search needs."""
    try:
        import optuna
    except ImportError:
        raise ValueError(MISSING) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
