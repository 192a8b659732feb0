"""Prune a model in place without training, block by block, from a few hundred sentences."""

import difflib
import inspect
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nxm_hf import pruners
from nxm_hf.config import NxMConfig
from nxm_hf.layers.modules import check_is_model, eval_no_grad
from nxm_hf.layers.plan import Plan
from nxm_hf.layers.sharding import reshard
from nxm_hf.permutation.permute import Permutation
from nxm_hf.pruners import OneShot
from nxm_hf.pruning.block_cache import BlockCache
from nxm_hf.pruning.blockwise import prune_blocks
from nxm_hf.pruning.calibration import Batch, Sampling, make_batches
from nxm_hf.pruning.evaluation import Evaluation
from nxm_hf.pruning.permute_first import permute_first
from nxm_hf.pruning.perplexity import TextEvaluation, is_causal
from nxm_hf.pruning.reconstruction import Reconstruction
from nxm_hf.pruning.result import PrunedLayer, PruningResult, peak_memory, record_pruning
from nxm_hf.pruning.text_rows import check_paths
from nxm_hf.pruning.trainer_batches import forward_inputs, held_tokenizer
from nxm_hf.pruning.weight_checks import check_shards, check_weights
from nxm_hf.storage.model_record import remove_record, set_record
from nxm_hf.storage.verify import verify_targets

logger = logging.getLogger("nxm_hf")


def prune(
    model: nn.Module,
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
    **settings: Any,
) -> PruningResult:
    """Prune a model in place, without training.

    The model is pruned block by block, so calibration costs about two forward passes of the model. Block outputs are
    cached in CPU memory.

    A model that FSDP2 has sharded is pruned by all its processes. Every process calls this with the same arguments.
    Each reads its share of the batches, and prunes some layers of a block for all.

    Args:
        model: A model with a stack of Transformer blocks; also in a container, such as a SentenceTransformer.
        pattern: Where zeros may stand, such as "2:4"; or a mapping by role, such as
            `{"ffn": "2:4", "default": "4:8"}`.
        method: A name of `nxm_hf.pruners.names()`, or a `nxm_hf.pruners.OneShot` object. By default "alps" with
            calibration data, which loses least and takes about three times as long as "sparsegpt"; and "magnitude"
            without.
        calibration: What the model reads, to compute statistics of the layers' inputs. One of: a list of texts; a
            .txt, .parquet, .csv, .tsv or .jsonl file; the name of a Hub dataset; or ready batches (dicts of tensors).
            "magnitude" needs none.
        tokenizer: The tokenizer of the texts; by default that of a SentenceTransformer or CrossEncoder itself, or of
            the model's own directory.
        include: Prune only these layers: names, roles such as "ffn", or "re:" patterns. By default, all matrices in
            the Transformer blocks.
        exclude: Leave these layers dense; written like `include`.
        on_indivisible: "error" or "skip", for layers whose shape does not fit the pattern.
        inputs: "pruned" if each block receives the outputs of the pruned blocks before it, or "dense" if it receives
            those of the dense blocks.
        reconstruct: "none"; or "block": after the layers of a block are pruned, its kept weights, biases and norms
            are trained by Adam to give the outputs of the dense model's block, with the masks held. A mapping sets
            `steps` (300), `learning_rate` (0.01) or `seed` (0), as in `{"steps": 600}`. A step reads one batch.
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
        cache: Where finished blocks are kept, so that a killed job can continue.
        report: Whether to compute the error of each layer's outputs. If False, "magnitude" reads no calibration
            data, and "wanda" collects the norms of inputs alone.
        **settings: The settings of the method, if `method` is a name; see `nxm_hf.pruners.settings(method)`.

    Returns:
        What was done to each layer. Printing it shows a table.

    Raises:
        ValueError: If an argument is wrong, a layer does not fit the pattern, or weights or inputs are not finite.
            The model is not changed then, unless the error appears during calibration.
        TypeError: If `model` is a path and not a model.
        FileNotFoundError: If `calibration` or `evaluation` is neither a file nor a Hub dataset.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> shape = dict(hidden_size=8, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1)
        >>> model = BertModel(BertConfig(**shape))
        >>> prune(model, "1:4").density
        0.25
    """
    _check_order(model, pattern)
    method = method or default_method(calibration)
    _check_settings(method, settings)
    check_paths(calibration, evaluation)
    sampling = Sampling(samples, length, batch_size, pack, columns, seed)
    calibrates, fit = calibration is not None, Reconstruction.of(reconstruct)
    layers = dict(include=include, exclude=exclude, on_indivisible=on_indivisible)
    job = PruningJob.check(model, pattern, method, settings, inputs, layers, calibrates, fit, permute)
    return job.run(calibration, tokenizer, sampling, evaluation, cache, report)


def default_method(calibration: object) -> str:
    """Return the method that prunes if none is named: the best by our measurements in docs/log.md.

    Args:
        calibration: The calibration data, or None.

    Example:
        >>> default_method(None), default_method(["A sentence."])
        ('magnitude', 'alps')
    """
    return "magnitude" if calibration is None else "alps"


def _check_order(model: object, pattern: object) -> None:
    """Raise if a path stands where the model should, or another argument where the pattern should."""
    if isinstance(pattern, nn.Module):
        raise TypeError(f"prune takes the model first. Write prune(model, {model!r}).")
    if isinstance(model, (str, Path)):
        raise TypeError(
            f"prune takes a model, and got the path {str(model)!r}. Load it with from_pretrained, or type "
            f"`nxm prune {model} OUT`."
        )
    check_is_model(model)
    if pattern in pruners.names():
        raise ValueError(f"{pattern!r} is a method, and a pattern comes before it. Write method={pattern!r}.")


# Names of other libraries for arguments of `prune`.
_OTHER_NAMES = {
    "nsamples": "samples",
    "n_samples": "samples",
    "num_samples": "samples",
    "num_calibration_samples": "samples",
    "seqlen": "length",
    "seq_len": "length",
    "max_length": "length",
    "max_seq_length": "length",
    "dataset": "calibration",
    "calibration_data": "calibration",
    "target_modules": "include",
    "targets": "include",
    "ignore": "exclude",
    "sparsity": "pattern",
    "sparsity_pattern": "pattern",
    "recipe": "method",
    "eval_dataset": "evaluation",
}


def _check_settings(method: str | OneShot, settings: Mapping[str, Any]) -> None:
    """Raise for a setting that the method does not have and that looks like an argument of `prune`."""
    own = pruners.settings(method) if isinstance(method, str) else {}
    arguments = [name for name in inspect.signature(prune).parameters if name not in ("model", "settings")]
    for name in settings:
        near = difflib.get_close_matches(name, [*own, *arguments], n=1, cutoff=0.7)
        meant = _OTHER_NAMES.get(name) or (near[0] if near else None)
        if name not in own and meant is not None:
            raise ValueError(f"prune has no {name}=; write {meant}=.")


@dataclass(frozen=True)
class PruningJob:
    """A pruning of one model that was checked, and that has changed nothing yet.

    Args:
        model: The model, without wrappers.
        config: The pattern, and the layers to prune.
        plan: The layers of this model, each with its pattern.
        pruner: The method.
        dense_inputs: Whether blocks receive the outputs of dense blocks.
        reconstruction: How blocks are fitted to the dense ones; None if they are not.
        permutes: Whether channels are reordered before.
    """

    model: nn.Module
    config: NxMConfig
    plan: Plan
    pruner: OneShot
    dense_inputs: bool
    reconstruction: Reconstruction | None = None
    permutes: bool = False

    @classmethod
    def check(
        cls,
        model: nn.Module,
        pattern: str | dict[str, str],
        method: str | OneShot,
        settings: Mapping[str, Any],
        inputs: str,
        layers: Mapping[str, Any],
        calibrates: bool,
        reconstruction: Reconstruction | None = None,
        permutes: bool = False,
    ) -> "PruningJob":
        """Check the arguments of `prune`, and find the layers to prune.

        Args:
            model: The model.
            pattern: Where zeros may stand.
            method: A name of a method, or a method object.
            settings: The settings of the method, if it is a name.
            inputs: "pruned" or "dense".
            layers: `include`, `exclude` and `on_indivisible`.
            calibrates: Whether there is calibration data.
            reconstruction: How blocks are fitted to the dense ones.
            permutes: Whether channels are reordered before.

        Returns:
            The job.

        Raises:
            ValueError: If an argument is wrong, or a weight has no finite values to be pruned.
        """
        if isinstance(method, OneShot) and settings:
            raise ValueError(f"A method object has its settings in it; got {', '.join(settings)}. Leave them out.")
        pruner = method if isinstance(method, OneShot) else pruners.make(method, **settings)
        config = check_arguments(pattern, pruner, inputs, layers, calibrates, reconstruction)
        plan = Plan.of(model, config)
        if plan.shards is not None:
            check_shards(plan, reconstruction is not None, permutes)
        check_weights(plan)
        return cls(plan.model, config, plan, pruner, inputs == "dense", reconstruction, permutes)

    def run(
        self,
        calibration: str | Path | Iterable | None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        sampling: Sampling | None = None,
        evaluation: str | Path | Iterable | None = None,
        cache: BlockCache | None = None,
        report: bool = True,
    ) -> PruningResult:
        """Prune the model in place, and record in its config how.

        Args:
            calibration: See `prune`.
            tokenizer: See `prune`.
            sampling: How much text to read.
            evaluation: See `prune`.
            cache: See `prune`.
            report: See `prune`.

        Returns:
            What was done to each layer.
        """
        if cache is not None and self.plan.shards is not None:
            raise ValueError("The weights are sharded, and cache= needs whole ones; call prune before fully_shard.")
        tokenizer = tokenizer or held_tokenizer(self.plan)
        scored = cast(PreTrainedModel, self.model)  # an evaluation refuses any other model
        scorer: Evaluation | TextEvaluation | None = None
        if evaluation is not None:
            make = TextEvaluation.from_text if is_causal(self.model) else Evaluation.from_rows
            scorer = make(evaluation, scored, tokenizer)
        before = scorer(scored) if scorer else {}
        begin = time.perf_counter()
        reads = calibration is not None and (report or self.pruner.needs_inputs or self.reconstruction is not None)
        made = [] if calibration is None or not reads else make_batches(calibration, self.model, tokenizer, sampling)
        batches = [part for batch in made for part in forward_inputs(batch, self.plan)]
        with eval_no_grad(self.model):
            permutation = self._permute(batches)
            remove_record(self.model)
            layers, blocks = prune_blocks(
                self.model, self.plan, self.pruner, batches, self.dense_inputs, cache, report, self.reconstruction
            )
        reshard(self.model)
        verify_targets(self.plan.targets).raise_for_problems()
        result = self._result(layers, calibrated=bool(batches), seconds=time.perf_counter() - begin)
        if permutation is not None:
            result = replace(result, permuted=(permutation.before, permutation.after))
        if self.reconstruction is not None:
            result = replace(result, reconstruct=asdict(self.reconstruction), blocks=tuple(blocks))
        set_record(self.model, record_pruning(self.config, result))
        if scorer is None:
            return result
        scores = {metric: (before[metric], value) for metric, value in scorer(scored).items()}
        return replace(result, scores=scores, rows=scorer.count, unit=scorer.unit)

    def _permute(self, batches: Sequence[Batch]) -> Permutation | None:
        """Reorder channels if that is asked for."""
        if not self.permutes:
            return None
        by_inputs = self.pruner.needs_inputs and bool(batches)
        return permute_first(self.model, self.plan, self.config, batches, by_inputs)

    def _result(self, by_name: Mapping[str, PrunedLayer], calibrated: bool, seconds: float) -> PruningResult:
        layers = tuple(by_name[target.name] for target in self.plan.targets)
        tokens = [layer.tokens or 0 for layer in layers]
        undetermined = [x for x in layers if x.tokens is not None and x.tokens < x.shape[1]]
        if undetermined:
            logger.warning(
                "The calibration data has fewer tokens (%d) than %d of the layers have inputs (up to %d); "
                "give more text, or larger samples= and length=.",
                min(layer.tokens or 0 for layer in undetermined),
                len(undetermined),
                max(layer.shape[1] for layer in undetermined),
            )
        return PruningResult(
            method=type(self.pruner).__name__.lower(),
            settings=asdict(self.pruner) if is_dataclass(self.pruner) else {},
            layers=layers,
            skipped=self.plan.skipped,
            tokens=max(tokens, default=0) if calibrated else None,
            seconds=seconds,
            peak_memory=peak_memory(),
        )


def check_arguments(
    pattern: str | dict[str, str],
    pruner: OneShot,
    inputs: str,
    layers: Mapping[str, Any],
    calibrates: bool,
    reconstruction: Reconstruction | None = None,
) -> NxMConfig:
    """Check the arguments of `prune` that can be checked without a model.

    Args:
        pattern: Where zeros may stand.
        pruner: The method.
        inputs: "pruned" or "dense".
        layers: `include`, `exclude` and `on_indivisible`.
        calibrates: Whether there is calibration data.
        reconstruction: How blocks are fitted to the dense ones.

    Returns:
        The config that says what to prune.

    Raises:
        ValueError: If an argument is wrong.
    """
    config = NxMConfig(recipe="asp", **{"pattern": pattern, **layers})
    name = type(pruner).__name__.lower()
    if config.is_dense:
        raise ValueError(f"pattern={config.pattern!r} prunes nothing. Write pattern='2:4', or any other.")
    if inputs not in ("pruned", "dense"):
        raise ValueError(f'inputs must be "pruned" or "dense"; got {inputs!r}. Write inputs="pruned".')
    if reconstruction and not calibrates:
        raise ValueError(
            "Reconstruction fits blocks to the outputs of the dense model, so it needs calibration data. Write "
            'calibration="texts.txt" (--calibration texts.txt), or reconstruct="none".'
        )
    if pruner.needs_inputs and not calibrates:
        raise ValueError(
            f"{name} scores weights by the inputs of each layer, so it needs calibration data: a list of texts, a "
            "file, the name of a data set on the Hub, or ready batches. Write "
            'calibration="texts.txt" (--calibration texts.txt), or choose method="magnitude".'
        )
    return config
