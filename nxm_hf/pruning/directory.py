"""Prune a saved model into another directory, which is written in full or not at all."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel

from nxm_hf import pruners
from nxm_hf._version import __version__
from nxm_hf.config.hub import hub_name
from nxm_hf.layers.find import find_layers
from nxm_hf.pruning.block_cache import BlockCache
from nxm_hf.pruning.calibration import Batch, Sampling, make_batches
from nxm_hf.pruning.prune import PruningJob, check_arguments, default_method
from nxm_hf.pruning.reconstruction import Reconstruction
from nxm_hf.pruning.result import PruningResult, record_pruning
from nxm_hf.pruning.text_rows import check_paths
from nxm_hf.storage.card_facts import CardFacts
from nxm_hf.storage.manifest import RESTORE, check_unchanged, record_model
from nxm_hf.storage.model_files import find_device, load_with_missing, model_class, read_model_config
from nxm_hf.storage.model_source import model_directory
from nxm_hf.storage.saving import (
    bytes_of,
    check_free,
    check_written,
    claimed,
    copy_beside,
    put_in_place,
    write_record,
)
from nxm_hf.storage.state_file import fingerprint
from nxm_hf.storage.verify import verify_targets
from nxm_hf.storage.write_errors import explained
from nxm_hf.text import shortened


def prune_directory(
    source: str | Path,
    out: str | Path,
    pattern: str | dict[str, str],
    method: str | None = None,
    calibration: str | Path | None = None,
    *,
    tokenizer: str | None = None,
    sampling: Sampling | None = None,
    settings: dict[str, Any] | None = None,
    evaluation: str | Path | None = None,
    inputs: str = "pruned",
    reconstruct: str | Mapping[str, Any] = "none",
    permute: bool = False,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    on_indivisible: str = "error",
    device: str | None = None,
    dtype: str | None = None,
) -> PruningResult:
    """Load a model, `prune` it, and save it with its tokenizer and the other files beside it.

    If the job is killed, run it again with the same arguments: it continues after the last finished block. Finished
    blocks are kept in a hidden folder beside `out` until the job is done.

    Args:
        source: The directory of a saved model, dense or sparse, or the name of a model on the Hub.
        out: The directory to write; it must not exist, or be empty.
        pattern: Where zeros may stand, for all layers or by role.
        method: A name of `nxm_hf.pruners.names()`; by default as in `prune`.
        calibration: A file of texts, or the name of a Hub dataset.
        tokenizer: The directory of the tokenizer; by default the model's own.
        sampling: How much text to read.
        settings: The settings of the method.
        evaluation: A file of labelled rows to score the model on before and after.
        inputs: "pruned" or "dense": what each block receives during calibration.
        reconstruct: "none", "block" or settings, as in `prune`.
        permute: Whether to reorder channels before, as in `prune`.
        include: Prune only these layers: names, roles, or "re:" patterns.
        exclude: Leave these layers dense; written like `include`.
        on_indivisible: "error" or "skip", for layers whose shape does not fit the pattern.
        device: Where to compute, such as "cuda"; by default on the CPU.
        dtype: The type of the weights to compute with and to save, such as "bfloat16"; by default that of the model.

    Returns:
        What was done to each layer. It is saved in `out` as well.

    Raises:
        ValueError: If `out` exists, an argument is wrong, or the model or a file cannot be read.
        FileNotFoundError: If there is no model in `source`, or no file or Hub dataset `calibration`.
    """
    out, place = Path(out), find_device(device)
    check_free(out)
    if not isinstance(settings or {}, dict):
        raise ValueError(f'settings must be an object such as {{"damping": 0.01}}; got {settings!r}.')
    method = method or default_method(calibration)
    pruner = pruners.make(method, **(settings or {}))
    settings = asdict(pruner)
    layers = {"include": include, "exclude": exclude, "on_indivisible": on_indivisible}
    reconstruction, calibrates = Reconstruction.of(reconstruct), calibration is not None
    check_arguments(pattern, pruner, inputs, layers, calibrates, reconstruction)
    check_paths(calibration, evaluation)
    facts = _facts(source, calibration)
    source = model_directory(str(source))  # all that can be checked without the model has been
    check_unchanged(source, RESTORE)
    model = _load(source, place, dtype)
    reader = None if tokenizer is None else AutoTokenizer.from_pretrained(tokenizer)
    batches = None if calibration is None else make_batches(calibration, model, reader, sampling)
    choices = {**settings, "inputs": inputs, **layers, "reconstruct": reconstruction, "permute": permute}
    identity = _identity(model, batches, pattern, method, choices)
    unfinished = out.parent / f".{out.name}.unfinished"
    with claimed(out), explained(out, 2 * bytes_of(model), unfinished):  # the finished blocks and the result
        cache = BlockCache(unfinished, identity)
        job = PruningJob.check(model, pattern, method, settings, inputs, layers, calibrates, reconstruction, permute)
        result = job.run(batches, reader, evaluation=evaluation, cache=cache)
        complete = cache.folder / "whole"
        _write(model, job, result, Path(source), facts, complete)
        put_in_place(complete, out)
        cache.clear()
    return result


def _load(source: str | Path, device: torch.device, dtype: str | None) -> PreTrainedModel:
    """Load the model in the class that saved it; raise if a prunable layer has no weight in the files."""
    model, missing = load_with_missing(model_class(read_model_config(source), source), source)
    if absent := [layer.name for layer in find_layers(model) if layer.key in missing]:
        raise ValueError(f"{source} holds no weight of {shortened(absent)}. Save the model again.")
    if dtype is not None:
        for parameter in model.parameters():  # buffers keep their precision, as from_pretrained leaves them
            parameter.data = parameter.data.to(getattr(torch, dtype))
    model.to(device)  # type: ignore[arg-type]  # transformers wraps Module.to, and loses its type
    return model


def _identity(
    model: PreTrainedModel, batches: Sequence[Batch] | None, pattern: Any, method: str, choices: dict[str, Any]
) -> dict[str, Any]:
    """Return everything that the numbers depend on, by name, as JSON."""
    tensors = {f"{n}.{key}": tensor for n, batch in enumerate(batches or ()) for key, tensor in batch.items()}
    data = {"model": fingerprint(model.state_dict().items()), "calibration": fingerprint(tensors.items())}
    options = {"pattern": pattern, "method": method, **choices, "nxm_version": __version__}
    return {**data, **{name: value if isinstance(value, dict) else str(value) for name, value in options.items()}}


def _facts(source: str | Path, calibration: str | Path | None) -> CardFacts:
    """Return what the card says of the origin of the model: the names of its source and its texts, if on the Hub."""
    data = None if calibration is None else hub_name(str(calibration))
    return CardFacts(hub_name(str(source)), () if data is None else (data,), new_weights=True)


def _write(
    model: PreTrainedModel, job: PruningJob, result: PruningResult, source: Path, facts: CardFacts, folder: Path
) -> None:
    """Write the pruned model, its config and card, the result, and the files beside the source model."""
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier run that was killed while it wrote
    model.save_pretrained(folder)
    copy_beside(source, folder)
    write_record(folder, record_pruning(job.config, result), verify_targets(job.plan.targets), facts)
    result.save(folder)
    with torch.no_grad():
        check_written(folder, job.plan)
    record_model(folder)
