"""Prune a model in place without training, block by block, from a few hundred sentences; or that of a directory."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from nxm_hf.pruners import OneShot
from nxm_hf.pruning.arguments import check_order, check_settings
from nxm_hf.pruning.block_cache import BlockCache
from nxm_hf.pruning.calibration import Sampling
from nxm_hf.pruning.directory import prune_directory
from nxm_hf.pruning.job import PruningJob, default_method
from nxm_hf.pruning.reconstruction import Reconstruction
from nxm_hf.pruning.result import PruningResult
from nxm_hf.pruning.text_rows import check_paths


def prune(
    model: nn.Module | str | Path,
    pattern: str | dict[str, str] = "2:4",
    method: str | OneShot | None = None,
    calibration: str | Path | Iterable | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    on_indivisible: str = "error",
    inputs: str = "pruned",
    reconstruct: str | Mapping[str, Any] = "none",
    permute: bool = False,
    samples: int = 128,
    length: int = 128,
    batch_size: int = 8,
    pack: bool | None = None,
    columns: str | Sequence[str] | None = None,
    seed: int | None = None,
    evaluation: str | Path | Iterable | None = None,
    cache: BlockCache | None = None,
    report: bool = True,
    out: str | Path | None = None,
    **settings: Any,
) -> PruningResult:
    """Prune a model in place, without training; or the model of a directory into another directory.

    The model is pruned block by block, so calibration costs about two forward passes of the model. Block outputs are
    cached in CPU memory. Of a directory, two blocks are in memory at a time, beside the embeddings and these outputs.
    So the model may be larger than memory.

    A model that FSDP2 has sharded is pruned by all its processes. Every process calls this with the same arguments.
    Each reads its share of the batches, and prunes some layers of a block for all.

    Args:
        model: A model with a stack of Transformer blocks; also in a container, such as a SentenceTransformer. With
            `out`, the directory of a saved model, or the name of a model on the Hub.
        pattern: Where zeros may stand, such as "2:4"; or a mapping by role, such as
            `{"ffn": "2:4", "default": "4:8"}`.
        method: A name of `nxm_hf.pruners.names()`, or a `nxm_hf.pruners.OneShot` object. By default "alps" with
            calibration data, which loses least and takes longer than "sparsegpt"; and "magnitude" without.
        calibration: Data for statistics of the layers' inputs: a list of texts, a file, the name of a Hub dataset, or
            ready batches (dicts of tensors). A file is .txt, .parquet, .csv, .tsv or .jsonl. "magnitude" needs none.
        tokenizer: The tokenizer of the texts; by default that of a SentenceTransformer or CrossEncoder itself, or of
            the model's own directory.
        include: Prune only these layers: names, roles such as "ffn", or "re:" patterns. By default, all matrices in
            the Transformer blocks.
        exclude: Leave these layers dense; written like `include`.
        on_indivisible: "error" or "skip", for layers whose shape does not fit the pattern.
        inputs: "pruned" if each block receives the outputs of the pruned blocks before it, or "dense" if it receives
            those of the dense blocks.
        reconstruct: "none", "block" or "model". "block" trains the kept weights, biases and norms of each block by
            Adam, after its layers are pruned. The target is the output of the dense model's block. "model" trains
            those of all blocks together at the end, and the target is the last hidden states of the dense model. The
            masks are held, and labels are not read. A mapping sets `scope`, `steps` (300), `learning_rate` (0.01) or
            `seed` (0), as in `{"scope": "model", "steps": 600}`. A step reads one batch.
        permute: Whether to reorder channels before, as `nxm_hf.permute` does, so that masks keep more. The order is
            chosen by magnitude times the norm of the input; by magnitude for "magnitude".
        samples: The number of sequences that are read from texts.
        length: The number of tokens of a sequence, at most.
        batch_size: The number of sequences of a batch.
        pack: Whether to join texts and cut them into sequences of full length. By default, files and datasets are
            packed for models whose tokenizer marks no end of a text.
        columns: The columns of a file or dataset to read; by default the first that holds text.
        seed: Draw the sequences at random by this seed; by default, evenly spaced ones are read.
        evaluation: What to score the model on before and after, in a list or a file. For a model for sequence
            classification: labelled rows, with one or two columns of text and a column `label`. For a causal language
            model: a text, whose `perplexity` is computed.
        cache: Where finished blocks are kept, so that a killed job can continue. With `out`, they always are.
        report: Whether to compute the error of each layer's outputs. If False, "magnitude" reads no calibration
            data, and "wanda" collects the norms of inputs alone.
        out: The directory to write if `model` is one; it must not exist, or be empty. After an interruption, the same
            call continues after the last finished block.
        **settings: The settings of the method, if `method` is a name; see `nxm_hf.pruners.settings(method)`.

    Returns:
        The result, with a row for each layer. Printing it shows a table.

    Raises:
        ValueError: If an argument is wrong, a layer does not fit the pattern, or weights or inputs are not finite.
            The model is not changed then, unless the error appears during calibration.
        TypeError: If `model` is a path and there is no `out`, or the other way round.
        FileNotFoundError: If `calibration` or `evaluation` is neither a file nor a Hub dataset.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> shape = dict(hidden_size=8, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1)
        >>> model = BertModel(BertConfig(**shape))
        >>> prune(model, "1:4").density
        0.25
    """
    check_order(model, pattern)
    names = [name for name in inspect.signature(prune).parameters if name not in ("model", "settings")]
    check_settings(method or default_method(calibration), settings, names)
    sampling = Sampling(samples, length, batch_size, pack, columns, seed)
    if isinstance(model, (str, Path)) or out is not None:
        _check_directories(model, out, cache)
        return prune_directory(
            str(model),
            str(out),
            pattern,
            method,
            calibration,
            tokenizer=tokenizer,
            sampling=sampling,
            settings=settings,
            evaluation=evaluation,
            inputs=inputs,
            reconstruct=reconstruct,
            permute=permute,
            include=include,
            exclude=exclude,
            on_indivisible=on_indivisible,
            report=report,
        )
    method = method or default_method(calibration)
    layers = dict(include=include, exclude=exclude, on_indivisible=on_indivisible)
    check_paths(calibration, evaluation)
    calibrates, fit = calibration is not None, Reconstruction.of(reconstruct)
    job = PruningJob.check(model, pattern, method, settings, inputs, layers, calibrates, fit, permute)
    return job.run(calibration, tokenizer, sampling, evaluation, cache, report)


def _check_directories(model: object, out: str | Path | None, cache: BlockCache | None) -> None:
    """Raise unless a directory is to be pruned into another one, which is where finished blocks are kept beside."""
    if not isinstance(model, (str, Path)):
        raise TypeError(
            f"out= is for the directory of a saved model, and model is a {type(model).__name__}, which is pruned in "
            "place. Leave out= away, and write model.save_pretrained(out) afterwards."
        )
    if out is None:
        raise TypeError(
            f"prune takes a model, and got the path {str(model)!r}. Load it with from_pretrained, or name a directory "
            f"to write with out=, as `nxm prune {model} OUT` does."
        )
    if cache is not None:
        raise ValueError("With out=, finished blocks are kept beside it until it is written. Leave cache= away.")
