"""Pruning during training: prune a model with rows of its training data when the phase that needs it begins.

A recipe declares this by a `CalibratedStart`. This module decides which trainings can do it, which rows are read, and
what happens if it fails.
"""

import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import torch
from accelerate.utils import broadcast, gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from nxm_hf.config import NxMConfig
from nxm_hf.layers.plan import Plan
from nxm_hf.layers.shard_exchange import exchange
from nxm_hf.layers.sharding import local, reshard
from nxm_hf.methods import PHASES
from nxm_hf.pruning.calibration import Batch, Sampling, evenly_spaced
from nxm_hf.pruning.prune import prune
from nxm_hf.pruning.trainer_batches import forward_inputs
from nxm_hf.recipes import CalibratedStart

logger = logging.getLogger("nxm_hf")
ROWS, ROWS_PER_BATCH = Sampling().samples, Sampling().batch_size
TOKENS = Sampling().samples * Sampling().length  # with fewer tokens in the first rows, more rows are read


class CalibratedPruner:
    """Prunes a model in place, with rows of its training data, by a method of `nxm_hf.prune`.

    Args:
        plan: The layers to prune.
        config: The config of the training.
        start: The method, and the phase that begins with what it made of the weights.
        loader: The training data.
    """

    def __init__(self, plan: Plan, config: NxMConfig, start: CalibratedStart, loader: DataLoader):
        self._plan, self._config, self._start, self._loader = plan, config, start, loader

    @classmethod
    def of(cls, plan: Plan, config: NxMConfig, loader: DataLoader | None) -> "CalibratedPruner | None":
        """Make the pruner of a training, if its recipe prunes with calibration data.

        Args:
            plan: The layers to prune.
            config: The config of the training.
            loader: The training data; None in a custom loop.

        Returns:
            The pruner. None if the recipe needs none, or falls back to its own scores.

        Raises:
            ValueError: If the recipe requires rows that this training cannot give.
        """
        start = config.calibrated_start
        if start is None:
            return None
        if loader is None:
            if start.required:
                _check_custom_loop(plan, config, start)
            elif start.preview:
                raise ValueError(
                    "preview=True needs training data, which is only available in NxMTrainer or NxMCallback. "
                    "In a custom loop leave preview out."
                )
            return None
        if not start.required and not _has_rows(_dataset_of(loader)):
            logger.warning(
                "%s needs a map-style dataset (with __getitem__ and __len__), but the training data is iterable; %s",
                start.method,
                _fallback(start),
            )
            return None
        if start.required and (config.warmup or start.phase == "settle"):
            _rows_of(loader, start.method)  # raise now, and not in the middle of the training
        return cls(plan, config, start, loader)

    @property
    def phase(self) -> str:
        """Return the phase that begins with the pruned weights: "recipe" or "settle"."""
        return self._start.phase

    def prune(self) -> None:
        """Prune the model, unless it holds its pattern already. Every process of a training calls this.

        Rows are taken by index from all over the training data and collated by the loader. The order of the training
        data and the random state stay as they are. If the recipe has a fallback and pruning fails in one process, all
        processes put their weights back.

        Raises:
            ValueError: If the recipe requires rows and the training data has none.
        """
        if self._plan.holds_pattern():
            return
        if self._start.required:
            self._prune_with_rows()
        elif failure := self._failure_of_any_process():
            logger.warning(
                "%s could not prune this model (%s); %s", self._start.method, failure, _fallback(self._start)
            )
            return
        if self._plan.shards is None:
            _broadcast_weights(self._plan)

    def preview(self) -> bool:
        """Prune as the training will, and return True if the weights then hold their pattern.

        Every process of a training calls this, and puts the layers back later. Collators that draw random numbers draw
        the same ones each time, so that equal weights have equal previews: what is saved is what was evaluated.
        """
        with _random_state_kept():
            random.seed(0)
            numpy.random.seed(0)
            torch.manual_seed(0)
            self.prune()
        return self._plan.holds_pattern()

    def is_to_preview(self, phase: str) -> bool:
        """Return True if the deployed view is to be previewed, in a phase before the weights are pruned.

        Args:
            phase: The current phase of the training.
        """
        return self._start.preview and PHASES.index(phase) < PHASES.index(self.phase)

    def _failure_of_any_process(self) -> str | None:
        """Try to prune; return the first failure of any process, with the weights put back, or None."""
        saved, failure = _copy_weights(self._plan), None
        try:
            self._prune_with_rows()
        except Exception as error:  # a model or a collator can fail in any way on a few rows
            failure = f"{type(error).__name__}: {error}"
        failures = [text for text in gather_object([failure]) if text]
        if not failures:
            return None
        _put_back_weights(self._plan, saved)
        return failures[0]

    def _prune_with_rows(self) -> None:
        config, method = self._config, self._start.method
        with _random_state_kept():
            batches = self._batches_of_all()
            shards = self._plan.shards
            result = prune(
                self._plan.model if shards is None else shards.model,
                config.pattern,
                method,
                batches,
                include=config.include,
                exclude=config.exclude,
                on_indivisible=config.on_indivisible,
            )
        logger.info(
            "%s pruned %d layers with %d batches of training rows: mean error %.4f (magnitude %.4f).",
            method,
            len(result.layers),
            len(batches),
            result.error or 0,
            result.magnitude_error or 0,
        )

    def _batches_of_all(self) -> list[Batch]:
        """Return batches of training rows; if weights are sharded and one process fails, raise in all."""
        batches, failure = [], None
        try:
            batches = list(_batches(self._loader, self._plan, self._start.method))
        except Exception as error:  # a collator can fail in any way
            failure = error
        if self._plan.shards is not None:
            failures = [text for text in exchange(self._plan.shards, failure and str(failure)) if text is not None]
            failure = failure or (ValueError(failures[0]) if failures else None)
        if failure is not None:
            raise failure
        return batches


def _fallback(start: CalibratedStart) -> str:
    return f'using scores="fisher" instead. Write {start.without_data} to silence this warning.'


def _check_custom_loop(plan: Plan, config: NxMConfig, start: CalibratedStart) -> None:
    """Raise unless a custom loop, which has no training rows to give, can train with this recipe."""
    if start.phase == "settle":
        raise ValueError(
            f'scores="{start.method}" needs training data, which is only available in NxMTrainer or NxMCallback. '
            'In a custom loop use scores="fisher".'
        )
    if config.warmup or not plan.holds_pattern():
        when = f" after a warm-up of {config.warmup}" if config.warmup else ""
        raise ValueError(
            f"{config.recipe} with {config.settings} trains a model that {start.method} has pruned{when}, and this "
            f"model does not hold {config.pattern!r} by then. NxMTrainer and NxMCallback prune it with their training "
            "data. In a custom loop call "
            f'nxm_hf.prune(model, {config.pattern!r}, "{start.method}", calibration) before attach(...) without a '
            "warm-up, or load the weights that a training saved."
        )


def _batches(loader: DataLoader, plan: Plan, method: str) -> Iterator[Batch]:
    """Return a few batches of rows from all over the data of a loader."""
    rows = _rows_of(loader, method)
    few = list(_collated(rows, ROWS, loader.collate_fn, plan))
    tokens = sum(int(batch["attention_mask"].sum()) for batch in few if "attention_mask" in batch)
    if len(rows) <= ROWS or not 0 < tokens < TOKENS:
        return iter(few)
    return _collated(rows, ROWS * TOKENS // tokens, loader.collate_fn, plan)


def _collated(rows: Any, count: int, collate: Callable[[list[Any]], Any], plan: Plan) -> Iterator[Batch]:
    """Yield batches of `count` rows that are evenly spaced over the data."""
    count = min(count, len(rows))
    chosen = evenly_spaced(count, len(rows))
    for begin in range(0, count, ROWS_PER_BATCH):
        batch = dict(collate([rows[number] for number in chosen[begin : begin + ROWS_PER_BATCH]]))
        yield from forward_inputs(batch, plan)


def _rows_of(loader: DataLoader, method: str) -> Any:
    """Return the dataset of a loader, or raise if its rows cannot be taken by index."""
    rows = _dataset_of(loader)
    if not _has_rows(rows):
        raise ValueError(
            f"{method} needs a map-style dataset (with __getitem__ and __len__); {type(rows).__name__} is not one. "
            f'Prune first, with nxm_hf.prune(model, pattern, "{method}", calibration), and train the result.'
        )
    return rows


def _dataset_of(loader: DataLoader) -> Any:
    return getattr(loader, "dataset", None)


def _has_rows(data: Any) -> bool:
    return not isinstance(data, IterableDataset) and hasattr(data, "__getitem__") and hasattr(data, "__len__")


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """Put all random states back after the block, so that the training draws the same numbers as without it."""
    python, arrays = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python)
            numpy.random.set_state(arrays)


@torch.no_grad()
def _broadcast_weights(plan: Plan) -> None:
    """Give all processes the weights of the first, because rounding may differ between them."""
    for parameter in _parameters(plan):
        broadcast(parameter.data)


def _copy_weights(plan: Plan) -> list[Tensor]:
    return [local(parameter.detach()).to("cpu", copy=True) for parameter in _parameters(plan)]


@torch.no_grad()
def _put_back_weights(plan: Plan, saved: list[Tensor]) -> None:
    for parameter, value in zip(_parameters(plan), saved, strict=True):
        local(parameter).copy_(value)


def _parameters(plan: Plan) -> Iterator[nn.Parameter]:
    reshard(plan.whole if plan.shards is None else plan.shards.model)
    # Once each: the two products of experts are of one module.
    return iter(dict.fromkeys(p for target in plan.targets for p in target.layer.module.parameters()))
