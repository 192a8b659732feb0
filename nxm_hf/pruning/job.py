"""A job of pruning: its arguments checked, then run block by block on a model in memory or in files."""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nxm_hf import pruners
from nxm_hf.config import NxMConfig
from nxm_hf.layers.modules import eval_no_grad
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
from nxm_hf.pruning.reconstruct_model import ModelReconstruction
from nxm_hf.pruning.reconstruction import Reconstruction
from nxm_hf.pruning.result import PrunedLayer, PruningResult, ReconstructedBlock, peak_memory, record_pruning
from nxm_hf.pruning.streamed_blocks import StreamedBlocks
from nxm_hf.pruning.trainer_batches import forward_inputs, held_tokenizer
from nxm_hf.pruning.weight_checks import check_shards, check_weights
from nxm_hf.solvers.entry_counts import count_entries
from nxm_hf.storage.model_record import remove_record, set_record
from nxm_hf.storage.verify import verify_targets

logger = logging.getLogger("nxm_hf")


def default_method(calibration: object) -> str:
    """Return the method that prunes if none is named: the best by our measurements in docs/research/log.

    Args:
        calibration: The calibration data, or None.

    Example:
        >>> default_method(None), default_method(["A sentence."])
        ('magnitude', 'alps')
    """
    return "magnitude" if calibration is None else "alps"


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
        streamed: The blocks, if their weights stay in files. Finished ones are then in the cache alone, and the caller
            verifies what it writes of them.
    """

    model: nn.Module
    config: NxMConfig
    plan: Plan
    pruner: OneShot
    dense_inputs: bool
    reconstruction: Reconstruction | None = None
    permutes: bool = False
    streamed: StreamedBlocks | None = None

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
        streamed: StreamedBlocks | None = None,
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
            streamed: The blocks, if their weights stay in files.

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
            check_shards(plan, reconstruction.scope if reconstruction else None, permutes)
        if streamed is None:  # else each weight is checked when it is read
            check_weights(plan.targets, plan.shards)
        return cls(plan.model, config, plan, pruner, inputs == "dense", reconstruction, permutes, streamed)

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
            The result, with a row for each layer.
        """
        if cache is not None and self.plan.shards is not None:
            raise ValueError("The weights are sharded, and cache= needs whole ones; call prune before fully_shard.")
        with self.streamed.read_when_computed() if self.streamed else nullcontext():
            return self._run(calibration, tokenizer or held_tokenizer(self.plan), sampling, evaluation, cache, report)

    def _run(
        self,
        calibration: str | Path | Iterable | None,
        tokenizer: PreTrainedTokenizerBase | None,
        sampling: Sampling | None,
        evaluation: str | Path | Iterable | None,
        cache: BlockCache | None,
        report: bool,
    ) -> PruningResult:
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
            layers, blocks = self._prune_and_fit(batches, cache, report)
        if self.streamed is None:
            reshard(self.model if self.plan.shards is None else self.plan.shards.model)
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

    def _prune_and_fit(
        self, batches: Sequence[Batch], cache: BlockCache | None, report: bool
    ) -> tuple[Mapping[str, PrunedLayer], list[ReconstructedBlock]]:
        """Prune all blocks; fit each just after, or all of them together at the end."""
        fit = self.reconstruction
        if fit is None or fit.scope == "block":
            settings = self.dense_inputs, cache, report, fit, self.streamed
            return prune_blocks(self.model, self.plan, self.pruner, batches, *settings)
        whole = ModelReconstruction(self.model, self.plan.targets, batches, fit)
        layers, _ = prune_blocks(self.model, self.plan, self.pruner, batches, self.dense_inputs, cache, report)
        fitted = whole.fit()
        for target in self.plan.targets:
            counts = count_entries(target.matrix())
            density = counts.nonzeros / max(target.matrix().numel(), 1)
            layers[target.name] = replace(layers[target.name], density=density)
        return layers, [fitted]

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
