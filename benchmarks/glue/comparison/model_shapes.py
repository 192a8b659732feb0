"""Models without their weights: what a training of them costs, how many masks they have, and a smaller dense one."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property

import torch
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from nxm_hf import NxMConfig
from nxm_hf.analysis import mask_diversity, training_flops
from nxm_hf.layers.plan import Plan

from .example_scripts import SQUAD, TASKS
from .options import option_value

# The names that model families give to the width between two FFN layers.
FFN_WIDTHS = ("intermediate_size", "hidden_dim", "ffn_dim", "n_inner")
WIDTH_MULTIPLE = 8


@dataclass(frozen=True)
class Shape:
    """Everything that decides how large a model is."""

    model: str
    labels: int
    overrides: str = "{}"  # changes of the config, as JSON
    revision: str = "main"
    trust: bool = False
    answers: bool = False  # questions, rather than classifies texts

    @classmethod
    def from_options(cls, model: str, task: str, options: Sequence[str]) -> "Shape":
        """Return the shape of the model that the script of a task would train.

        Args:
            model: A model on the Hub, or a directory.
            task: The task, which decides the number of labels.
            options: Further options of the script.
        """
        trust = (option_value(options, "trust_remote_code") or "false").lower() in ("true", "1", "yes")
        overrides, revision = option_value(options, "config_overrides"), option_value(options, "revision")
        labels = 2 if task == SQUAD else len(TASKS[task].labels) or 1  # a start and an end, for the former
        return cls(model, labels, overrides or "{}", revision or "main", trust, task == SQUAD)

    @property
    def error(self) -> str:
        """Return why the config cannot be read; empty if it can."""
        return _config_error(self.model, self.revision, self.trust)

    @cached_property
    def config(self) -> PretrainedConfig:
        """Return the config that the model is made from; `OSError` if it cannot be read."""
        if self.error:
            raise OSError(self.error)
        return AutoConfig.from_pretrained(
            self.model,
            num_labels=self.labels,
            revision=self.revision,
            trust_remote_code=self.trust,
            **json.loads(self.overrides),
        )

    def build(self) -> PreTrainedModel:
        """Return a model of this shape whose weights take no memory."""
        head = AutoModelForQuestionAnswering if self.answers else AutoModelForSequenceClassification
        with torch.device("meta"):
            return head.from_config(self.config, trust_remote_code=self.trust)

    def replace(self, **widths: int) -> "Shape":
        """Return the shape with other widths, by their names in the config."""
        return replace(self, overrides=json.dumps({**json.loads(self.overrides), **widths}))

    @property
    def weights(self) -> int:
        """Return the number of all weights."""
        return sum(parameter.numel() for parameter in self.build().parameters())


@cache
def _config_error(model: str, revision: str, trust: bool) -> str:
    """Return why a config cannot be read; cached, since without a network each attempt takes half a minute."""
    try:
        AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=trust)
    except OSError as error:
        return str(error)
    return ""


@cache
def flops(shape: Shape, config: str, steps: int, tokens: int) -> float:
    """Return the FLOPs of one example in one training step, averaged over the steps.

    Args:
        shape: The model.
        config: The config of the recipe, as JSON.
        steps: The number of training steps.
        tokens: The length of an example.
    """
    cost = training_flops(shape.build(), NxMConfig.from_dict(json.loads(config)), steps, tokens=tokens)
    return cost.overall * cost.total / steps


@cache
def masks_per_weight(shape: Shape, config: str) -> float | None:
    """Return log10 of the number of masks for each weight that is pruned.

    Args:
        shape: The model.
        config: The config of the recipe, as JSON.

    Returns:
        None if nothing is pruned, or if the masks of a pattern cannot be counted.
    """
    targets = Plan.of(shape.build(), NxMConfig.from_dict(json.loads(config))).targets
    try:
        masks = sum(mask_diversity(target.pattern, target.numel) for target in targets)
    except ValueError:
        return None
    return masks / sum(target.numel for target in targets) if targets else None


@cache
def nonzero_weights(shape: Shape, pattern: str) -> int:
    """Return how many weights a model of this shape keeps under a pattern.

    Args:
        shape: The model.
        pattern: The pattern, or patterns by role, as JSON.
    """
    targets = Plan.of(shape.build(), NxMConfig("asp", pattern=json.loads(pattern))).targets
    return shape.weights - sum(target.numel - target.kept for target in targets)


def narrower_shape(shape: Shape, pattern: str | dict[str, str]) -> Shape:
    """Return a narrower dense shape with as many weights as the sparse model has non-zeros.

    It has fewer heads of the same size, and the FFN width that makes the number of weights right. Of all such shapes
    it is the one whose ratio of FFN width to hidden size is nearest to the original's.

    Args:
        shape: The model.
        pattern: The pattern of the sparse model, or patterns by role.

    Raises:
        ValueError: There is no such shape, or the config does not name its FFN width.
    """
    return _narrowed(shape, nonzero_weights(shape, json.dumps(pattern)))


@cache
def _narrowed(shape: Shape, wanted: int) -> Shape:
    config, ffn_width = shape.config, _ffn_width(shape)
    heads, hidden_size, ffn_size = config.num_attention_heads, config.hidden_size, getattr(config, ffn_width)
    candidates = {}
    for count in range(1, heads + 1):
        hidden = hidden_size // heads * count
        # DeBERTa has a separate width before its head, which must be equal to the hidden size.
        pooler = {"pooler_hidden_size": hidden} if hasattr(config, "pooler_hidden_size") else {}
        narrow = shape.replace(num_attention_heads=count, hidden_size=hidden, **pooler, **{ffn_width: WIDTH_MULTIPLE})
        # The number of weights is linear in the FFN width, so two shapes tell the width that gives the wanted number.
        smallest, next_smallest = narrow.weights, narrow.replace(**{ffn_width: 2 * WIDTH_MULTIPLE}).weights
        multiples = 1 + round((wanted - smallest) / (next_smallest - smallest))
        if multiples >= 1:
            ratio = (multiples * WIDTH_MULTIPLE / hidden) / (ffn_size / hidden_size)
            candidates[abs(math.log(ratio))] = narrow.replace(**{ffn_width: multiples * WIDTH_MULTIPLE})
    if not candidates:
        raise ValueError(f"No narrower {shape.model} has as few as {wanted} weights; leave the baseline 'small' out.")
    return candidates[min(candidates)]


def _ffn_width(shape: Shape) -> str:
    for name in FFN_WIDTHS:
        if getattr(shape.config, name, None):
            return name
    raise ValueError(
        f"The config of {shape.model} has none of {', '.join(FFN_WIDTHS)}, so it is not known how to make it narrower. "
        "Leave the baseline 'small' out."
    )
