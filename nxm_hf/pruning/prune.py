"""Pruning without training: `prune` makes a model sparse in place, block by block, from a few hundred sentences."""

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from nxm_hf import pruners
from nxm_hf.config import NxMConfig
from nxm_hf.layers.modules import eval_no_grad, unwrap
from nxm_hf.layers.plan import Plan
from nxm_hf.pruners import OneShot
from nxm_hf.pruning.blockwise import Shelf, prune_blocks
from nxm_hf.pruning.calibration import Batch, Sampling, make_batches
from nxm_hf.pruning.evaluation import Evaluation
from nxm_hf.pruning.result import PrunedLayer, PruningResult, made_by, peak_memory
from nxm_hf.storage.model_record import remove_record, set_record
from nxm_hf.storage.verify import verify_targets

logger = logging.getLogger("nxm_hf")


def prune(
    model: nn.Module,
    pattern: str | dict[str, str] = "2:4",
    method: str | OneShot = "magnitude",
    calibration: str | Path | Iterable | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    on_indivisible: str = "error",
    inputs: str = "pruned",
    samples: int = 128,
    length: int = 128,
    batch_size: int = 8,
    pack: bool | None = None,
    columns: str | Sequence[str] | None = None,
    evaluation: str | Path | Iterable | None = None,
    shelf: Shelf | None = None,
    **settings: Any,
) -> PruningResult:
    """Make a model sparse in place, without training; returns what was done to each layer, which prints as a table.

    `method` is a name of `nxm_hf.pruners.names()`, with its `settings`. All but magnitude look at what enters each
    layer, so they need `calibration`: a list of texts, a file (.txt, .parquet, .csv, .jsonl), the name of a data set
    on the Hub, or ready batches. Of texts, `samples` sequences of `length` tokens are read with `tokenizer`, by
    default that of the model's own directory. `inputs` are those that blocks pruned before give ("pruned"), or those
    of the dense model ("dense"). `evaluation` is what to judge a model for classification or regression by, before
    and after: labelled rows, in a file or a list, with one or two columns of text and `label`. `pattern`, `include`,
    `exclude` and `on_indivisible` are as in `NxMConfig`.

    >>> from transformers import BertConfig, BertModel
    >>> model = BertModel(BertConfig(hidden_size=8, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1))
    >>> prune(model, "1:4").density
    0.25
    """
    config = NxMConfig("asp", pattern, include=include, exclude=exclude, on_indivisible=on_indivisible)
    sampling = Sampling(samples, length, batch_size, pack, columns)
    pruner = method if isinstance(method, OneShot) else pruners.make(method, **settings)
    _check(config, pruner, calibration, inputs, settings if pruner is method else {})
    plan = Plan.of(model, config)
    _check_numbers(plan)
    asked = None if evaluation is None else Evaluation.of(evaluation, unwrap(model), tokenizer)
    before = asked and asked(unwrap(model))
    begin = time.perf_counter()
    batches = None if calibration is None else make_batches(calibration, unwrap(model), tokenizer, sampling)
    remove_record(model)
    with eval_no_grad(model):
        layers = prune_blocks(unwrap(model), plan, pruner, batches, inputs == "dense", shelf)
    verify_targets(plan.targets).raise_for_problems()
    outcome = _outcome(pruner, layers, plan, batches, begin)
    set_record(model, made_by(outcome, config))
    if asked:
        after = asked(unwrap(model))
        outcome = replace(outcome, scores={name: (before[name], after[name]) for name in after}, rows=len(asked.labels))
    return outcome


# -- what is checked before anything changes ---------------------------------------------------------------------------


def _check(config: NxMConfig, pruner: OneShot, calibration: Any, inputs: str, left: dict) -> None:
    name = type(pruner).__name__.lower()
    if config.is_dense:
        raise ValueError(f"pattern={config.pattern!r} prunes nothing. Write pattern='2:4', or any other.")
    if left:
        raise ValueError(f"A method object has its settings in it; got {', '.join(left)}. Leave them out.")
    if inputs not in ("pruned", "dense"):
        raise ValueError(f'inputs must be "pruned" or "dense"; got {inputs!r}. Write inputs="pruned".')
    if pruner.needs_inputs and calibration is None:
        raise ValueError(
            f"{name} looks at the inputs of each layer, so it needs calibration data: a list of texts, a file, the "
            'name of a data set on the Hub, or ready batches. Write calibration="texts.txt" (--calibration texts.txt), '
            'or choose method="magnitude".'
        )


def _check_numbers(plan: Plan) -> None:
    for target in plan.targets:
        weight = target.layer.weight
        if weight.is_meta:
            raise ValueError(f"{target.name} is on the meta device and has no numbers. Load the model whole.")
        if count := int(weight.isnan().sum()):
            raise ValueError(f"{target.name} holds {count} NaN, of which no mask can be made. Load another checkpoint.")


def _outcome(
    pruner: OneShot, layers: dict[str, PrunedLayer], plan: Plan, batches: list[Batch] | None, begin: float
) -> PruningResult:
    rows = tuple(layers[target.name] for target in plan.targets)
    few = [row for row in rows if row.tokens is not None and row.tokens < row.shape[1]]
    if few:
        logger.warning(
            "The calibration data has fewer tokens (%d) than %d of the layers have inputs (up to %d); "
            "give more text, or larger samples= and length=.",
            *(min(row.tokens for row in few), len(few), max(row.shape[1] for row in few)),
        )
    return PruningResult(
        method=type(pruner).__name__.lower(),
        settings=asdict(pruner) if is_dataclass(pruner) else {},
        layers=rows,
        skipped=plan.skipped,
        tokens=max((row.tokens or 0 for row in rows), default=0) if batches else None,
        seconds=time.perf_counter() - begin,
        peak_memory=peak_memory(),
    )
