"""Beginning: a model pruned from rows of the data it is trained on, which the training then sees as ever."""

import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy
import torch
from accelerate.utils import broadcast
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from nxm_hf.config import NxMConfig
from nxm_hf.pruning.calibration import Batch, Sampling
from nxm_hf.pruning.models import prune
from nxm_hf.targets import Plan, holds_pattern, resolve

logger = logging.getLogger("nxm_hf")
ROWS, AT_ONCE = Sampling().samples, Sampling().batch_size
TOKENS = Sampling().samples * Sampling().length  # fewer than these, of short rows, and more rows are read


def pruner(model: nn.Module, config: NxMConfig, loader: DataLoader) -> Callable[[], None] | None:
    """What prunes a model in place by rows of its training data; None where its recipe does not begin with that."""
    if config.pruned_by is None:
        return None
    if config.warmup:
        _rows(loader, config.pruned_by)  # what could not be done after the warm-up is said before it
    return partial(prune_by_rows, model, config, loader)


def prune_by_rows(model: nn.Module, config: NxMConfig, loader: DataLoader) -> None:
    """Prune a model in place as its recipe asks, if it does not hold its pattern; every process calls this.

    Rows are taken by number, from all over the training data, and collated as the loader does; neither the order of
    the training nor its chance is touched.
    """
    plan = resolve(model, config)
    if holds_pattern(plan):
        return
    choices = {name: getattr(config, name) for name in ("include", "exclude", "on_indivisible")}
    with _chance_put_back():
        batches = list(_batches(loader, config.pruned_by))
        outcome = prune(model, config.pattern, config.pruned_by, batches, **choices)
    _agree(plan)
    logger.info(
        "Before sparse training %s pruned %d layers, from %d batches of its rows: mean error %.4f (magnitude %.4f).",
        *(config.pruned_by, len(plan.targets), len(batches), outcome.error or 0, outcome.magnitude_error or 0),
    )


def _batches(loader: DataLoader, method: str) -> Iterator[Batch]:
    """A few batches of rows from all over the data of a loader."""
    rows = _rows(loader, method)
    few = list(_spread(rows, ROWS, loader.collate_fn))
    tokens = sum(int(batch["attention_mask"].sum()) for batch in few if "attention_mask" in batch)
    if len(rows) <= ROWS or not 0 < tokens < TOKENS:
        return iter(few)
    return _spread(rows, ROWS * TOKENS // tokens, loader.collate_fn)


def _spread(rows: Any, count: int, collate: Callable) -> Iterator[Batch]:
    """So many rows, from all over the data, a few at a time."""
    count = min(count, len(rows))
    chosen = [number * len(rows) // count for number in range(count)]
    for begin in range(0, count, AT_ONCE):
        yield dict(collate([rows[number] for number in chosen[begin : begin + AT_ONCE]]))


def _rows(loader: DataLoader, method: str) -> Any:
    """The data set of a loader, whose rows have numbers."""
    rows = getattr(loader, "dataset", None)
    if isinstance(rows, IterableDataset) or not (hasattr(rows, "__getitem__") and hasattr(rows, "__len__")):
        raise ValueError(
            f"{method} looks at some rows of the training data by their number, and {type(rows).__name__} has none. "
            f'Prune first, with nxm_hf.prune(model, pattern, "{method}", calibration), and train what comes out.'
        )
    return rows


@contextmanager
def _chance_put_back() -> Iterator[None]:
    """Whatever a row, a collator or a model draws meanwhile is not taken from the training."""
    python, arrays = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python)
            numpy.random.set_state(arrays)


@torch.no_grad()
def _agree(plan: Plan) -> None:
    """Have all processes go on from what the first has made, to the bit."""
    for target in plan.targets:
        for parameter in target.layer.module.parameters():
            broadcast(parameter.data)
