"""Prune a saved model into another directory, which is written in full or not at all."""

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nxm_hf import pruners
from nxm_hf._version import __version__
from nxm_hf.config.hub import hub_name, model_folder
from nxm_hf.layers.find import find_layers
from nxm_hf.pruners import OneShot
from nxm_hf.pruning.block_cache import BlockCache
from nxm_hf.pruning.calibration import Batch, Sampling, make_batches, named_tokenizer
from nxm_hf.pruning.job import PruningJob, check_arguments, default_method
from nxm_hf.pruning.reconstruction import Reconstruction
from nxm_hf.pruning.result import PruningResult, record_pruning
from nxm_hf.pruning.streamed_blocks import StreamedBlocks
from nxm_hf.pruning.streamed_files import write_streamed
from nxm_hf.pruning.text_rows import check_paths
from nxm_hf.storage.card_facts import CardFacts
from nxm_hf.storage.manifest import RESTORE, check_unchanged, file_digests, record_model
from nxm_hf.storage.model_files import find_device, load_with_missing, skeleton
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
from nxm_hf.storage.verify import verify_targets, verify_written
from nxm_hf.storage.write_errors import explained
from nxm_hf.text import shortened

_RESULT = "whole"  # in the hidden folder of a job, beside the blocks that are pruned


def prune_directory(
    source: str | Path,
    out: str | Path,
    pattern: str | dict[str, str],
    method: str | OneShot | None = None,
    calibration: str | Path | Iterable | None = None,
    *,
    tokenizer: str | PreTrainedTokenizerBase | None = None,
    sampling: Sampling | None = None,
    settings: dict[str, Any] | None = None,
    evaluation: str | Path | Iterable | None = None,
    inputs: str = "pruned",
    reconstruct: str | Mapping[str, Any] = "none",
    permute: bool = False,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    on_indivisible: str = "error",
    device: str | None = None,
    dtype: str | None = None,
    report: bool = True,
) -> PruningResult:
    """Load a model, `prune` it, and save it with its tokenizer and the other files beside it.

    Two blocks are in memory at a time, beside what is outside of the blocks. The whole model is loaded if channels are
    reordered, if all blocks are fitted together, and if its files hold other tensors than `save_pretrained` would
    write.

    If the job is killed, run it again with the same arguments: it continues after the last finished block. Finished
    blocks are kept in a hidden folder beside `out` until the job is done. Without calibration data none are kept, and
    the model is read and written at the speed of the disk.

    Args:
        source: The directory of a saved model, dense or sparse, or the name of a model on the Hub.
        out: The directory to write; it must not exist, or be empty.
        pattern: Where zeros may stand, for all layers or by role.
        method: A name of `nxm_hf.pruners.names()`, or a method object; by default as in `prune`.
        calibration: A file of texts, the name of a Hub dataset, texts, or batches.
        tokenizer: The tokenizer, or its directory; by default the model's own.
        sampling: How much text to read.
        settings: The settings of the method.
        evaluation: A file of labelled rows to score the model on before and after.
        inputs: "pruned" or "dense": what each block receives during calibration.
        reconstruct: "none", "block", "model" or settings, as in `prune`.
        permute: Whether to reorder channels before, as in `prune`.
        include: Prune only these layers: names, roles, or "re:" patterns.
        exclude: Leave these layers dense; written like `include`.
        on_indivisible: "error" or "skip", for layers whose shape does not fit the pattern.
        device: Where to compute, such as "cuda"; by default on the CPU.
        dtype: The type of the weights to compute with and to save, such as "bfloat16"; by default that of the model.
        report: Whether to compute the error of each layer's outputs, as in `prune`.

    Returns:
        The result, with a row for each layer. It is saved in `out` as well.

    Raises:
        ValueError: If `out` exists, an argument is wrong, or the model or a file cannot be read.
        FileNotFoundError: If there is no model in `source`, or no file or Hub dataset `calibration`.
    """
    out, place = Path(out), find_device(device)
    check_free(out)
    if not isinstance(settings or {}, dict):
        raise ValueError(f'settings must be an object such as {{"damping": 0.01}}; got {settings!r}.')
    method = method or default_method(calibration)
    pruner = method if isinstance(method, OneShot) else pruners.make(method, **(settings or {}))
    layers = {"include": include, "exclude": exclude, "on_indivisible": on_indivisible}
    reconstruction, calibrates = Reconstruction.of(reconstruct), calibration is not None
    whole = reconstruction is not None and reconstruction.scope == "model"  # a fit of all blocks at once
    check_arguments(pattern, pruner, inputs, layers, calibrates, reconstruction)
    check_paths(calibration, evaluation)
    facts = _facts(source, calibration)
    folder = Path(model_directory(str(source)))  # all that can be checked without the model has been
    check_unchanged(folder, RESTORE)
    streams = not (permute or whole)
    model, streamed = _load(folder, place, None if dtype is None else getattr(torch, dtype), streams)
    reader = named_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer
    batches = None if calibration is None else make_batches(calibration, model, reader, sampling)
    choices = {"pattern": pattern, **_settings(pruner), "inputs": inputs, **layers, "report": report}
    choices |= {"reconstruct": reconstruction, "permute": permute}
    identity = _identity(model, folder if streamed else None, batches, pruner, choices)
    unfinished = out.parent / f".{out.name}.unfinished"
    needed = 2 * (bytes_of(folder) if streamed else bytes_of(model))  # the finished blocks and the result
    with claimed(out), _without_rest(unfinished), explained(out, needed, unfinished):
        # Without inputs, blocks are pruned as fast as finished ones can be read.
        cache = BlockCache(unfinished, identity) if calibrates or streamed is None else None
        own = {} if pruner is not method else settings or {}  # an object takes no settings
        job = PruningJob.check(
            model, pattern, pruner, own, inputs, layers, calibrates, reconstruction, permute, streamed
        )
        result = job.run(batches, reader, evaluation=evaluation, cache=cache, report=report)
        complete = unfinished / _RESULT
        _write(model, job, result, folder, facts, complete)
        put_in_place(complete, out)
        shutil.rmtree(unfinished)
    return result


@contextmanager
def _without_rest(unfinished: Path) -> Iterator[None]:
    """Remove what an error in the body leaves of the result. Blocks that are pruned stay, for the next try."""
    try:
        yield
    except BaseException:
        shutil.rmtree(unfinished / _RESULT, ignore_errors=True)
        with suppress(OSError):  # pruned blocks are in it
            unfinished.rmdir()
        raise


def _load(
    source: Path, device: torch.device, dtype: torch.dtype | None, streams: bool
) -> tuple[PreTrainedModel, StreamedBlocks | None]:
    """Load the model in the class that saved it; raise if a prunable layer has no weight in the files.

    Its blocks stay in the files if `streams` is True and the files allow it. `from_pretrained` maps files into memory
    without reading them, so it costs little then.
    """
    model, missing = load_with_missing(type(skeleton(source)), source)
    if absent := [layer.name for layer in find_layers(model) if layer.key in missing]:
        raise ValueError(f"{source} holds no weight of {shortened(absent)}. Save the model again.")
    if streams and (streamed := StreamedBlocks.of(model, source, device, dtype)):
        return model, streamed
    if dtype is not None:
        for parameter in model.parameters():  # buffers keep their precision, as from_pretrained leaves them
            parameter.data = parameter.data.to(dtype)
    model.to(device)  # type: ignore[arg-type]  # transformers wraps Module.to, and loses its type
    return model, None


def _settings(pruner: OneShot) -> dict[str, Any]:
    return asdict(pruner) if is_dataclass(pruner) else {}


def _identity(
    model: PreTrainedModel,
    folder: Path | None,
    batches: Sequence[Batch] | None,
    pruner: OneShot,
    choices: dict[str, Any],
) -> dict[str, Any]:
    """Return everything that the numbers depend on, by name, as JSON. Of a model in files, the files are looked at."""
    tensors = {f"{n}.{key}": tensor for n, batch in enumerate(batches or ()) for key, tensor in batch.items()}
    weights: Any = fingerprint(model.state_dict().items()) if folder is None else None
    if folder is not None:
        weights = {**file_digests(model_folder(folder), "*.safetensors"), "dtype": str(model.dtype)}
    data = {"model": weights, "calibration": fingerprint(tensors.items())}
    options = {"method": type(pruner).__name__.lower(), **choices, "nxm_version": __version__}
    return {**data, **{name: value if isinstance(value, dict) else str(value) for name, value in options.items()}}


def _facts(source: str | Path, calibration: object) -> CardFacts:
    """Return the origin of the model for its card: the names of its source and its texts, if they are on the Hub."""
    data = hub_name(str(calibration)) if isinstance(calibration, (str, Path)) else None
    return CardFacts(hub_name(str(source)), () if data is None else (data,), new_weights=True)


def _write(
    model: PreTrainedModel, job: PruningJob, result: PruningResult, source: Path, facts: CardFacts, folder: Path
) -> None:
    """Write the pruned model, its config and card, the result, and the files beside the source model."""
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier run that was killed while it wrote
    if job.streamed is None:
        model.save_pretrained(folder)
        found = verify_targets(job.plan.targets)
    else:
        model.save_pretrained(folder, state_dict={})  # its config and all else but the weights
        write_streamed(model, job.streamed, folder)
        found = verify_written(folder, model, job.plan.targets)
        found.raise_for_problems()
    copy_beside(source, folder)
    write_record(folder, record_pruning(job.config, result), found, facts)
    result.save(folder)
    if job.streamed is None:
        with torch.no_grad():
            check_written(folder, job.plan)
    record_model(folder)
