"""The request of a command line: the trials that choose the settings of each variant, and those to compare."""

from collections.abc import Sequence
from dataclasses import dataclass

from .grid_points import best_first
from .model_shapes import Shape
from .options import check_options
from .presets import read_preset
from .recipe_text import check_key, read_recipe, read_teaching
from .runner import Runner
from .search import Search
from .trials import HELD_OUT, Point, Trial, check_trial
from .variants import Grid, Variant, check_small_baseline, points_of_grid

Choice = dict[tuple[str, Variant], Point]  # by task and variant


@dataclass(frozen=True)
class ComparisonRequest:
    """A comparison of variants on tasks, and the grid that the settings of each are chosen from.

    Args:
        model: A model on the Hub, or a directory.
        tasks: The tasks.
        variants: The recipes, with the budget of each.
        seeds: The seeds that are compared.
        search_seeds: The seeds that settings are chosen with.
        more: Options of `run_glue.py` that all trials share.
        grid: The values of each key.
        preset: The grid of a paper, which `grid` adds to.
    """

    model: str
    tasks: Sequence[str]
    variants: Sequence[Variant]
    seeds: Sequence[int]
    search_seeds: Sequence[int]
    more: tuple[str, ...]
    grid: Grid
    preset: str | None = None

    @property
    def pairs(self) -> list[tuple[str, Variant]]:
        """Return every variant on every task."""
        return [(task, variant) for task in self.tasks for variant in self.variants]

    def trial(self, task: str, variant: Variant, seed: int, point: Point, hold_out: float = 0.0) -> Trial:
        """Return the trial of a variant.

        Args:
            task: The task.
            variant: The variant, whose budget is added to the point.
            seed: The seed.
            point: The point of the grid.
            hold_out: The fraction of training rows to evaluate on; 0 evaluates on the validation rows.
        """
        more = self.more if variant.more is None else variant.more
        return Trial(task, variant.recipe, seed, (*point, *variant.budget), hold_out, self.model, more)

    def points(self, task: str, variant: Variant) -> list[Point]:
        """Return the points of the grid that a variant is tried with.

        Args:
            task: The task.
            variant: The variant; the grid does not change its budget.
        """
        grid = dict(self.grid)
        if self.preset:
            grid = {**read_preset(self.preset).grid(task, variant.recipe, self.more), **grid}
        budget = dict(variant.budget)
        return points_of_grid({key: values for key, values in grid.items() if key not in budget}, variant.recipe)

    def held_out_trials(self, task: str, variant: Variant) -> list[Trial]:
        """Return the trials that a point is chosen by; none if the grid has a single point.

        Args:
            task: The task.
            variant: The variant.
        """
        points = self.points(task, variant)
        if len(points) == 1:
            return []
        return [self.trial(task, variant, seed, point, HELD_OUT) for point in points for seed in self.search_seeds]

    def compared_trials(self, choice: Choice) -> list[Trial]:
        """Return the trials that are compared.

        Args:
            choice: The point of each variant on each task.
        """
        return [self.trial(*pair, seed, choice[pair]) for seed in self.seeds for pair in self.pairs]

    def check(self) -> None:
        """Check recipes, keys, values, options and the model before anything is run.

        Raises:
            ValueError: One of them is not valid.
        """
        check_options(self.more)
        recipes = list(dict.fromkeys(variant.recipe for variant in self.variants))
        for recipe in recipes:
            read_recipe(recipe)
            read_teaching(recipe)
        for key in self.grid:
            check_key(key, recipes)
        check_small_baseline(recipes, self.more)
        try:
            Shape.from_options(self.model, self.tasks[0], self.more).build()
        except OSError as error:
            raise ValueError(f"{self.model} is no model that can be read: {str(error).splitlines()[0]}") from None
        for task, variant in self.pairs:
            for point in self.points(task, variant):
                check_trial(self.trial(task, variant, self.seeds[0], point))


# -- choosing -----------------------------------------------------------------------------------------------------


def best_point(runner: Runner, trials: Sequence[Trial]) -> Point:
    """Return the point with the best mean over seeds on the rows held out.

    Args:
        runner: The runner, which has the records.
        trials: The trials at all points.
    """
    return best_first(runner.records.of(trials))[0][0]


def choose_by_grid(request: ComparisonRequest, runner: Runner) -> Choice:
    """Return the best point of the grid for each variant on each task, after running what is not finished.

    Args:
        request: The comparison.
        runner: Runs the trials.
    """
    trials = {pair: request.held_out_trials(*pair) for pair in request.pairs}
    runner.run([trial for group in trials.values() for trial in group])
    choice = {}
    for (task, variant), group in trials.items():
        point = best_point(runner, group) if group else request.points(task, variant)[0]
        choice[task, variant] = _without_budget(point, variant)
    return choice


def choose_by_search(request: ComparisonRequest, search: Search) -> Choice:
    """Return the best point that a search finds for each variant on each task.

    Args:
        request: The comparison.
        search: The search.
    """
    seed = request.search_seeds[0]
    trials = [request.trial(*pair, seed, request.points(*pair)[0], HELD_OUT) for pair in request.pairs]
    return {
        (task, variant): _without_budget(point, variant)
        for (task, variant), point in zip(request.pairs, search.run(trials), strict=True)
    }


def _without_budget(point: Point, variant: Variant) -> Point:
    """Return a point without the budget of its variant, which `ComparisonRequest.trial` adds."""
    return tuple(pair for pair in point if pair not in variant.budget)
