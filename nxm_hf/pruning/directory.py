"""Conversion: a saved model to a sparse one in another directory, which is written whole or not at all."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from nxm_hf import pruners
from nxm_hf._version import __version__
from nxm_hf.layers.find import find_layers
from nxm_hf.layers.plan import Plan
from nxm_hf.pruning.block_cache import BlockShelf
from nxm_hf.pruning.calibration import Batch, Sampling, make_batches
from nxm_hf.pruning.prune import prune
from nxm_hf.pruning.result import PruningResult
from nxm_hf.storage.model_files import model_class
from nxm_hf.storage.model_record import read_record
from nxm_hf.storage.saving import check_written, copy_beside, write_record
from nxm_hf.storage.state_file import fingerprint
from nxm_hf.storage.verify import verify_targets
from nxm_hf.text import shortened


def prune_directory(
    source: str | Path,
    out: str | Path,
    pattern: str | dict[str, str],
    method: str = "magnitude",
    calibration: str | Path | None = None,
    *,
    tokenizer: str | None = None,
    sampling: Sampling | None = None,
    settings: dict[str, Any] | str | None = None,
    evaluation: str | Path | None = None,
    **choices: Any,
) -> PruningResult:
    """Load a model, `prune` it, and save it to `out` with its tokenizer and all else that lay beside it.

    `evaluation` and `choices` are as in `prune`: include, exclude, on_indivisible and inputs. A job that was killed
    goes on when it is asked for again in the same words: finished blocks lie in a hidden folder beside `out` until it
    is whole.
    """
    out = Path(out)
    _check_free(out)
    if not isinstance(settings or {}, dict):
        raise ValueError(f'settings must be an object such as {{"damp": 0.01}}; got {settings!r}.')
    settings = asdict(pruners.make(method, **(settings or {})))
    model = _load(source)
    texts = None if tokenizer is None else AutoTokenizer.from_pretrained(tokenizer)
    batches = None if calibration is None else make_batches(calibration, model, texts, sampling)
    shelf = BlockShelf(out.parent / f".{out.name}.unfinished", _job(model, batches, pattern, method, settings, choices))
    outcome = prune(model, pattern, method, batches, texts, evaluation=evaluation, shelf=shelf, **choices, **settings)
    whole = shelf.folder / "whole"
    _write(model, outcome, Path(source), whole)
    os.rename(whole, out)
    shelf.clear()
    return outcome


def _check_free(out: Path) -> None:
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ValueError(f"{out} is there already, and nothing is overwritten. Name another place, or remove it.")


def _load(source: str | Path) -> PreTrainedModel:
    """The model of a directory, in the class that saved it; a layer without a weight in the files is an error."""
    if not (Path(source) / "config.json").is_file():
        raise FileNotFoundError(f"{source} holds no config.json; it must be a directory that save_pretrained wrote.")
    kind = model_class(AutoConfig.from_pretrained(source), source)
    model, found = kind.from_pretrained(source, output_loading_info=True)
    lost = [layer.name for layer in find_layers(model) if f"{layer.name}.weight" in found["missing_keys"]]
    if lost:
        raise ValueError(f"{source} holds no weight of {shortened(lost)}. Save the model again.")
    return model


def _job(
    model: PreTrainedModel, batches: Sequence[Batch] | None, pattern: Any, method: str, settings: dict, choices: dict
) -> dict[str, Any]:
    """All that the numbers depend on, by name."""
    seen = {f"{n}.{key}": x for n, batch in enumerate(batches or ()) for key, x in batch.items()}
    job = {"model": fingerprint(model.state_dict().items()), "calibration": fingerprint(seen.items())}
    said = {"pattern": pattern, "method": method, **settings, **choices, "nxm_version": __version__}
    return {**job, **{name: value if isinstance(value, dict) else str(value) for name, value in said.items()}}


def _write(model: PreTrainedModel, outcome: PruningResult, source: Path, whole: Path) -> None:
    """Everything that belongs into the new directory."""
    shutil.rmtree(whole, ignore_errors=True)  # of a job that was killed here
    model.save_pretrained(whole)
    copy_beside(source, whole)
    record = read_record(model)
    assert record is not None  # prune has set it
    plan = Plan.of(model, record.config)
    write_record(whole, record, verify_targets(plan.targets))
    outcome.save(whole)
    with torch.no_grad():
        check_written(whole, plan)
