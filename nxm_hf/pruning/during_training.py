"""Beginning: a model pruned from rows of the data it is trained on, where its recipe or its settling begins."""

import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy
import torch
from accelerate.utils import broadcast, gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from nxm_hf.config.config import NxMConfig
from nxm_hf.layers.plan import Plan, holds_pattern, resolve
from nxm_hf.pruning.calibration import Batch, Sampling, evenly_spaced
from nxm_hf.pruning.prune import prune

logger = logging.getLogger("nxm_hf")
ROWS, AT_ONCE = Sampling().samples, Sampling().batch_size
TOKENS = Sampling().samples * Sampling().length  # fewer than these, of short rows, and more rows are read
INSTEAD = 'so the scores "fisher" choose what is kept. scores="fisher" asks for no other.'


def pruner(model: nn.Module, config: NxMConfig, loader: DataLoader) -> Callable[[], None] | None:
    """What prunes a model in place by rows of its training data; None where its recipe has nothing pruned so."""
    by = config.calibrated_start
    if by is None:
        return None
    if not by.required and not _are_rows(_data(loader)):
        logger.warning("%s looks at rows by their number, and a stream has none; %s", by.method, INSTEAD)
        return None
    if by.required and (config.warmup or by.phase == "settle"):
        _rows(loader, by.method)  # what could not be done by then is said before the first step
    return partial(prune_by_rows, model, config, loader)


def prune_by_rows(model: nn.Module, config: NxMConfig, loader: DataLoader) -> None:
    """Prune a model in place as its recipe asks, if it does not hold its pattern; every process calls this.

    Rows are taken by number, from all over the training data, and collated as the loader does; neither the order of
    the training nor its chance is touched. Where the recipe can do without and this fails in one process, all leave
    the weights as they were.
    """
    plan = resolve(model, config)
    if holds_pattern(plan):
        return
    before, failure = None if config.calibrated_start.required else _copies(plan), None
    try:
        _prune(model, config, loader)
    except Exception as error:  # what a model or a collator makes of a few rows can be anything
        if before is None:
            raise
        failure = f"{type(error).__name__}: {error}"
    if failures := [said for said in gather_object([failure]) if said]:
        logger.warning("%s could not prune this model (%s); %s", config.calibrated_start.method, failures[0], INSTEAD)
        _put_back(plan, before)
    else:
        _agree(plan)


def _prune(model: nn.Module, config: NxMConfig, loader: DataLoader) -> None:
    choices = {name: getattr(config, name) for name in ("include", "exclude", "on_indivisible")}
    method = config.calibrated_start.method
    with _chance_put_back():
        batches = list(_batches(loader, method))
        outcome = prune(model, config.pattern, method, batches, **choices)
    logger.info(
        "%s pruned %d layers, from %d batches of the training rows: mean error %.4f (magnitude %.4f).",
        *(method, len(outcome.layers), len(batches), outcome.error or 0, outcome.magnitude_error or 0),
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
    chosen = evenly_spaced(count, len(rows))
    for begin in range(0, count, AT_ONCE):
        yield dict(collate([rows[number] for number in chosen[begin : begin + AT_ONCE]]))


def _rows(loader: DataLoader, method: str) -> Any:
    """The data set of a loader, whose rows have numbers."""
    rows = _data(loader)
    if not _are_rows(rows):
        raise ValueError(
            f"{method} looks at some rows of the training data by their number, and {type(rows).__name__} has none. "
            f'Prune first, with nxm_hf.prune(model, pattern, "{method}", calibration), and train what comes out.'
        )
    return rows


def _data(loader: DataLoader) -> Any:
    return getattr(loader, "dataset", None)


def _are_rows(data: Any) -> bool:
    return not isinstance(data, IterableDataset) and hasattr(data, "__getitem__") and hasattr(data, "__len__")


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
    for parameter in _parameters(plan):
        broadcast(parameter.data)


def _copies(plan: Plan) -> list[Tensor]:
    return [parameter.detach().to("cpu", copy=True) for parameter in _parameters(plan)]


@torch.no_grad()
def _put_back(plan: Plan, before: list[Tensor]) -> None:
    for parameter, value in zip(_parameters(plan), before, strict=True):
        parameter.copy_(value)


def _parameters(plan: Plan) -> Iterator[nn.Parameter]:
    return (parameter for target in plan.targets for parameter in target.layer.module.parameters())
