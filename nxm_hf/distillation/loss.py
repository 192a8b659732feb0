"""DistillationConfig: the loss between the outputs of a student and those of its teacher."""

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
    """The weights of the terms by which a student learns from its teacher.

    With labels the loss is `(1 - weight) * task + weight * temperature**2 * KL(teacher || student)`. To this, `hidden`
    times the error of the hidden states is added, and `attention` times the error of the attention maps. Regression
    heads use the mean squared error of the logits in place of the divergence. With gradient accumulation, each part of
    a batch counts by its share of the labels.

    Args:
        temperature: The logits are divided by it before the softmax. A higher one gives softer distributions.
        weight: The share of the teacher's logits in the loss, from 0 to 1. The task has the rest.
        hidden: The weight of the squared error of the hidden states, layer by layer. The teacher needs as many layers
            and channels as the student.
        attention: The weight of the squared error of the attention maps, layer by layer. The teacher needs as many
            layers and heads as the student, and both need `attn_implementation="eager"`. The maps are those that
            models return, with their dropout.

    Example:
        >>> DistillationConfig(weight=0.9).temperature
        2.0
    """

    temperature: float = 2.0
    weight: float = 0.5
    hidden: float = 0.0
    attention: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            if not number or value < 0 or (name == "weight" and value > 1) or (name == "temperature" and value == 0):
                needed = {"weight": "from 0 to 1", "temperature": "above 0"}.get(name, "0 or above")
                raise ValueError(f"{name} must be a number {needed}; got {value!r}. Write {name}={field.default}.")

    @classmethod
    def from_any(cls, value: "DistillationConfig | Mapping[str, float] | None") -> "DistillationConfig":
        """Return a DistillationConfig made of the forms that the argument `distillation` takes.

        Args:
            value: A DistillationConfig, a dict of its fields, or None for the defaults.

        Raises:
            TypeError: If the value has another type.
            ValueError: If a key is no field, or a field has a value out of range.
        """
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping | None):
            raise TypeError(
                f'distillation must be a DistillationConfig, or a dict such as {{"weight": 0.5}}; got {value!r}.'
            )
        settings = dict(value or {})
        known = [field.name for field in fields(cls)]
        if unknown := [key for key in settings if key not in known]:
            raise ValueError(f"distillation has no {', '.join(map(repr, unknown))}; its keys are {', '.join(known)}.")
        return cls(**settings)

    @property
    def enabled(self) -> bool:
        """True if the teacher changes the loss."""
        return any((self.weight, self.hidden, self.attention))

    @property
    def output_flags(self) -> dict[str, bool]:
        """Return the keyword arguments of `forward` with which a model returns all outputs that are compared."""
        weights = {"output_hidden_states": self.hidden, "output_attentions": self.attention}
        return {name: True for name, weight in weights.items() if weight}

    def loss(
        self, student: Any, teacher: Any, inputs: Mapping[str, Any], causal: bool, problem_type: str | None
    ) -> Tensor:
        """Return the teacher's part of the loss, as a mean over this batch.

        Args:
            student: The outputs of the student for `inputs`.
            teacher: The outputs of the teacher for `inputs`.
            inputs: The batch, with its labels and attention masks.
            causal: True if the logits at a position predict the label of the next position.
            problem_type: The `problem_type` of the student's config.

        Raises:
            ValueError: If the models do not return an output to compare, or return different shapes.
        """
        terms = []
        if self.weight:
            logits = _matched_outputs("logits", LOGITS, student, teacher)
            means = [
                _logit_loss(ours, theirs, inputs, causal, problem_type, self.temperature) for _, ours, theirs in logits
            ]
            terms.append(self.weight * torch.stack(means).mean())
        features = (("hidden states", HIDDEN_STATES, self.hidden), ("attentions", ATTENTIONS, self.attention))
        for noun, names, weight in features:
            if weight:
                matched = _matched_outputs(noun, names, student, teacher)
                means = [_feature_loss(name, ours, theirs, inputs) for name, ours, theirs in matched]
                terms.append(weight * torch.stack(means).mean())
        return torch.stack(terms).sum()


def target_labels(inputs: Mapping[str, Any], causal: bool) -> Tensor | None:
    """Return the labels that the logits are aligned with, or None if the batch has no labels.

    Args:
        inputs: The batch. `shift_labels` are aligned already, `labels` of causal language models are not.
        causal: True if the logits at a position predict the label of the next position.
    """
    if causal and inputs.get("shift_labels") is not None:
        return inputs["shift_labels"]
    labels = inputs.get("labels")
    return labels[..., 1:] if causal and labels is not None else labels


def _matched_outputs(noun: str, names: tuple[str, ...], student: Any, teacher: Any) -> list[tuple[str, Tensor, Tensor]]:
    """Return (name, tensor of the student, tensor of the teacher) for each of the named outputs and each layer."""
    matched: list[tuple[str, Tensor, Tensor]] = []
    for name in names:
        ours, theirs = _tensors(student, name), _tensors(teacher, name)
        our_shapes, their_shapes = ([tuple(x.shape) for x in tensors] for tensors in (ours, theirs))
        if our_shapes != their_shapes:
            raise ValueError(
                f"The {name} of the teacher have the shapes {their_shapes}, and those of the student {our_shapes}. "
                "Take a teacher of the student's kind, or leave this term out of distillation=."
            )
        matched += [(name, x.float(), y.float()) for x, y in zip(ours, theirs, strict=True)]
    if not matched:
        raise ValueError(f"The models return no {noun} to compare; leave this term out of distillation=.")
    return matched


def _tensors(outputs: Any, name: str) -> tuple[Tensor, ...]:
    """Return the tensors of one output of a model: one, one per layer, or none if the model does not return it."""
    value = outputs.get(name) if isinstance(outputs, Mapping) else None
    return (value,) if isinstance(value, Tensor) else tuple(value or ())


def _logit_loss(
    ours: Tensor, theirs: Tensor, inputs: Mapping[str, Any], causal: bool, problem_type: str | None, temperature: float
) -> Tensor:
    """Return the divergence of the logits, or their squared error for regression, as a mean over all labels."""
    if causal and inputs.get("shift_labels") is None:
        ours, theirs = ours[..., :-1, :], theirs[..., :-1, :]
    labels = target_labels(inputs, causal)
    if problem_type == "regression" or ours.shape[-1] == 1:
        return (ours - theirs).square().mean()
    if problem_type == "multi_label_classification":  # each label is a separate yes or no: softmax over (z, 0)
        ours, theirs = (torch.stack((z, torch.zeros_like(z)), -1) for z in (ours, theirs))
    log_q, log_p = (log_softmax(z / temperature, -1) for z in (ours, theirs))
    # The factor keeps the size of the gradients independent of the temperature.
    divergence = temperature**2 * kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
    if labels is None or labels.shape != divergence.shape or labels.is_floating_point():
        return divergence.mean()
    labeled = labels.ne(-100)
    return (divergence * labeled).sum() / labeled.sum().clamp(min=1)


def _feature_loss(name: str, ours: Tensor, theirs: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """Return the squared error of one layer: a mean over the positions of each row, and then over rows.

    The error of hidden states is a mean over features. The error of attention maps is a mean over heads, and a sum
    over the positions attended to, so that padding does not change it.
    """
    error = (ours - theirs).square()
    error = error.sum(-1).mean(1) if name in ATTENTIONS else error.flatten(2).mean(-1)
    attended = inputs.get("decoder_attention_mask" if name.startswith(("decoder", "cross")) else "attention_mask")
    if attended is None or attended.shape != error.shape:
        return error.mean()
    return ((error * attended).sum(1) / attended.sum(1).clamp(min=1)).mean()
