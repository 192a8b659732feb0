"""DistillationConfig: what a student is to learn from a teacher's answers, beside its task."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

LOGITS = ("logits", "start_logits", "end_logits")
HIDDEN_STATES = ("hidden_states", "encoder_hidden_states", "decoder_hidden_states")
ATTENTIONS = ("attentions", "encoder_attentions", "decoder_attentions", "cross_attentions")


@dataclass(frozen=True)
class DistillationConfig:
    """How the loss is made of the task's and of what a teacher says.

    It is `(1 - weight) * task + weight * temperature**2 * KL(teacher || student)`, of logits divided by the
    temperature; of regression heads, `weight` times the mean squared difference. To it come `hidden` times that of the
    hidden states, and `attention` times that of the attention maps (with their dropout, as models return them), of a
    teacher with the student's shape; where a batch is trained in parts, a part counts by its share of the labels.

    >>> DistillationConfig(weight=0.9).temperature
    2.0
    """

    temperature: float = 2.0
    weight: float = 0.5
    hidden: float = 0.0
    attention: float = 0.0

    def __post_init__(self):
        for name, value in vars(self).items():
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            if not number or value < 0 or (name == "weight" and value > 1) or (name == "temperature" and value == 0):
                needed = {"weight": "from 0 to 1", "temperature": "above 0"}.get(name, "0 or above")
                default = type(self).__dataclass_fields__[name].default
                raise ValueError(f"{name} must be a number {needed}; got {value!r}. Write {name}={default}.")

    @classmethod
    def from_any(cls, value: "DistillationConfig | Mapping[str, float] | None") -> "DistillationConfig":
        """From what a user may give: a DistillationConfig, a dict, or nothing, which is all defaults."""
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping | None):
            raise TypeError(
                f'distillation must be a DistillationConfig, or a dict such as {{"weight": 0.5}}; got {value!r}.'
            )
        known = [f.name for f in fields(cls)]
        if wrong := [key for key in value or () if key not in known]:
            raise ValueError(f"distillation has no {', '.join(map(repr, wrong))}; its keys are {', '.join(known)}.")
        return cls(**(value or {}))

    @property
    def enabled(self) -> bool:
        """Whether a teacher changes anything."""
        return any((self.weight, self.hidden, self.attention))

    @property
    def output_flags(self) -> dict[str, bool]:
        """What a model has to be called with to return all that is compared."""
        asked = {"output_hidden_states": self.hidden, "output_attentions": self.attention}
        return {name: True for name, weight in asked.items() if weight}

    def loss(
        self, student: Any, teacher: Any, inputs: Mapping[str, Any], causal: bool, problem_type: str | None
    ) -> Tensor:
        """The teacher's part of the loss, as a mean over this batch.

        Args:
            student, teacher: what the two models have returned for `inputs`.
            causal: whether the answer at a position is to the label of the next one.
            problem_type: the `problem_type` of the student's config.
        """
        terms = []
        if self.weight:
            logits = _matched_outputs("logits", LOGITS, student, teacher)
            means = [
                _logit_loss(ours, theirs, inputs, causal, problem_type, self.temperature) for _, ours, theirs in logits
            ]
            terms.append(self.weight * torch.stack(means).mean())
        for word, names, weight in (
            ("hidden states", HIDDEN_STATES, self.hidden),
            ("attentions", ATTENTIONS, self.attention),
        ):
            if weight:
                means = [_feature_loss(*pair, inputs) for pair in _matched_outputs(word, names, student, teacher)]
                terms.append(weight * torch.stack(means).mean())
        return torch.stack(terms).sum()


def target_labels(inputs: Mapping[str, Any], causal: bool) -> Tensor | None:
    """The labels of a batch that answers are given to."""
    if causal and inputs.get("shift_labels") is not None:
        return inputs["shift_labels"]
    labels = inputs.get("labels")
    return labels[..., 1:] if causal and labels is not None else labels


def _matched_outputs(word: str, names: tuple[str, ...], student: Any, teacher: Any) -> list[tuple[str, Tensor, Tensor]]:
    """Name by name, and layer by layer, what the student returned and what the teacher did."""
    found = []
    for name in names:
        ours, theirs = (out.get(name) if isinstance(out, Mapping) else None for out in (student, teacher))
        ours, theirs = ((x,) if isinstance(x, Tensor) else tuple(x or ()) for x in (ours, theirs))
        shapes = [[tuple(x.shape) for x in layers] for layers in (ours, theirs)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"The {name} of the teacher have the shapes {shapes[1]} where the student's have {shapes[0]}; "
                "take a teacher of the student's kind, or leave this term out of distillation=."
            )
        found += [(name, one.float(), other.float()) for one, other in zip(ours, theirs, strict=True)]
    if not found:
        raise ValueError(f"The models return no {word} to compare; leave this term out of distillation=.")
    return found


def _logit_loss(
    ours: Tensor, theirs: Tensor, inputs: Mapping[str, Any], causal: bool, problem_type: str | None, temperature: float
) -> Tensor:
    """How far logits are apart, as a mean over what has a label."""
    if causal and inputs.get("shift_labels") is None:
        ours, theirs = ours[..., :-1, :], theirs[..., :-1, :]
    labels = target_labels(inputs, causal)
    if problem_type == "regression" or ours.shape[-1] == 1:
        return (ours - theirs).square().mean()
    if problem_type == "multi_label_classification":  # each label is a yes or no of its own: softmax over (z, 0)
        ours, theirs = (torch.stack((z, torch.zeros_like(z)), -1) for z in (ours, theirs))
    log_q, log_p = (log_softmax(z / temperature, -1) for z in (ours, theirs))
    apart = temperature**2 * kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
    if labels is None or labels.shape != apart.shape or labels.is_floating_point():
        return apart.mean()
    kept = labels.ne(-100)
    return (apart * kept).sum() / kept.sum().clamp(min=1)


def _feature_loss(name: str, ours: Tensor, theirs: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """The squared error of one layer: a mean over each row's own positions, and then over rows.

    Of hidden states it is a mean over features; of attention maps a sum over what is attended to, so that padding
    does not count, and a mean over heads.
    """
    error = (ours - theirs).square()
    error = error.sum(-1).mean(1) if name in ATTENTIONS else error.flatten(2).mean(-1)
    kept = inputs.get("decoder_attention_mask" if name.startswith(("decoder", "cross")) else "attention_mask")
    if kept is None or kept.shape != error.shape:
        return error.mean()
    return ((error * kept).sum(1) / kept.sum(1).clamp(min=1)).mean()
