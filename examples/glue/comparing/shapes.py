"""Shapes of models, without their weights: what a training costs, how free its masks are, and a smaller dense model."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property

import torch
from run_glue import TASKS
from transformers import AutoConfig, AutoModelForSequenceClassification

from nxm_hf import NxMConfig
from nxm_hf.analysis import mask_diversity, training_flops
from nxm_hf.layers.plan import Plan

INNER = ("intermediate_size", "hidden_dim", "ffn_dim", "n_inner")  # what families call the width between two FFN layers
MULTIPLE = 8


@dataclass(frozen=True)
class Shape:
    """What decides how large a model is."""

    model: str
    labels: int
    overrides: str = "{}"  # changes of the config, as JSON
    revision: str = "main"
    trust: bool = False

    @classmethod
    def of(cls, model: str, task: str, more: Sequence[str]) -> "Shape":
        """The shape that these options of `run_glue.py` give."""
        trust = (option(more, "trust_remote_code") or "false").lower() in ("true", "1", "yes")
        overrides, revision = option(more, "config_overrides"), option(more, "revision")
        return cls(model, len(TASKS[task].labels) or 1, overrides or "{}", revision or "main", trust)

    @property
    def trouble(self) -> str:
        """Why its config cannot be read, if so."""
        return _trouble(self.model, self.revision, self.trust)

    @cached_property
    def config(self):
        """The config that the model is made from."""
        if self.trouble:
            raise OSError(self.trouble)
        where = {"revision": self.revision, "trust_remote_code": self.trust}
        return AutoConfig.from_pretrained(self.model, num_labels=self.labels, **where, **json.loads(self.overrides))

    def build(self):
        """A model of this shape whose weights take no memory."""
        with torch.device("meta"):
            return AutoModelForSequenceClassification.from_config(self.config, trust_remote_code=self.trust)

    def changed(self, **changes: int) -> "Shape":
        """The shape with other widths."""
        return replace(self, overrides=json.dumps({**json.loads(self.overrides), **changes}))

    @property
    def weights(self) -> int:
        """How many weights it has in all."""
        return sum(parameter.numel() for parameter in self.build().parameters())


@cache
def _trouble(model: str, revision: str, trust: bool) -> str:
    """Asked once: where there is no network, an answer takes half a minute."""
    try:
        AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=trust)
    except OSError as error:
        return str(error)
    return ""


def option(words: Sequence[str], name: str) -> str | None:
    """The value of the last `--name value` or `--name=value`; "true" where it has none.

    >>> option(["--max_steps", "5", "--bf16", "--seed=3"], "bf16")
    'true'
    """
    found = None
    for word, after in zip(words, [*words, "--"][1:], strict=True):
        key, equals, value = word.partition("=")
        if key.replace("-", "_") == f"__{name}":
            found = value if equals else "true" if after.startswith("--") else after
    return found


@cache
def flops(shape: Shape, config: str, steps: int, tokens: int) -> float:
    """FLOPs of one example in one step of a training, on the mean of its steps, by `nxm_hf.analysis`."""
    told = training_flops(shape.build(), NxMConfig.from_dict(json.loads(config)), steps, tokens=tokens)
    return told.overall * told.total / steps


@cache
def diversity(shape: Shape, config: str) -> float | None:
    """The decimal logarithm of the number of masks, for each pruned weight; None where nobody can count them."""
    targets = Plan.of(shape.build(), NxMConfig.from_dict(json.loads(config))).targets
    try:
        masks = sum(mask_diversity(target.pattern, target.numel) for target in targets)
    except ValueError:
        return None
    return masks / sum(target.numel for target in targets) if targets else None


@cache
def nonzero(shape: Shape, pattern: str) -> int:
    """How many weights are not zero once a model of this shape holds a pattern."""
    targets = Plan.of(shape.build(), NxMConfig("asp", pattern=json.loads(pattern))).targets
    return shape.weights - sum(target.numel - target.kept for target in targets)


def small(shape: Shape, pattern: str | dict[str, str]) -> Shape:
    """A narrower dense shape of as many weights as a sparse model has non-zero ones.

    It has fewer heads of the same size, and that width between the two FFN layers which makes the number right; of
    all such shapes it is the one whose FFN is nearest to the first in proportion.
    """
    return _narrowed(shape, nonzero(shape, json.dumps(pattern)))


@cache
def _narrowed(shape: Shape, wanted: int) -> Shape:
    config, inner = shape.config, _inner(shape)
    heads, width, between = config.num_attention_heads, config.hidden_size, getattr(config, inner)
    found = {}
    for count in range(1, heads + 1):
        hidden = width // heads * count
        # A width of its own before the head, as DeBERTa has, goes along.
        pooled = {"pooler_hidden_size": hidden} if hasattr(config, "pooler_hidden_size") else {}
        narrow = shape.changed(num_attention_heads=count, hidden_size=hidden, **pooled, **{inner: MULTIPLE})
        least, next_least = narrow.weights, narrow.changed(**{inner: 2 * MULTIPLE}).weights
        blocks = 1 + round((wanted - least) / (next_least - least))  # the number of weights is linear in this width
        if blocks >= 1:
            ratio = (blocks * MULTIPLE / hidden) / (between / width)
            found[abs(math.log(ratio))] = narrow.changed(**{inner: blocks * MULTIPLE})
    if not found:
        raise ValueError(f"No narrower {shape.model} has as few as {wanted} weights; leave the baseline 'small' out.")
    return found[min(found)]


def _inner(shape: Shape) -> str:
    for name in INNER:
        if getattr(shape.config, name, None):
            return name
    raise ValueError(
        f"The config of {shape.model} has none of {', '.join(INNER)}, so it is not known how to make it narrower. "
        "Leave the baseline 'small' out."
    )
