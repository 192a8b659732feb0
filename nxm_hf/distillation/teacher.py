"""Teachers: loaded from a directory or taken as they are, and refused where they cannot teach this student."""

from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss

from nxm_hf.config.hub import read_json
from nxm_hf.distillation.loss import DistillationConfig, target_labels
from nxm_hf.storage.state_file import fingerprint

_LAYERS = ("num_hidden_layers", "num_decoder_layers", "encoder_layers", "decoder_layers")
_HEADS = ("num_attention_heads", "encoder_attention_heads", "decoder_attention_heads")


class Teacher:
    """A model that is asked and never trained, and how its answers enter the loss of a student.

    Args:
        source: a model, or a directory that one was saved in.
        student: the model that is trained.
        distillation: what of the answers counts how much.
        tokenizer: the student's `processing_class`, if it has one.
        args: the `TrainingArguments`, which know where the student is.
    """

    def __init__(self, source: Any, student: nn.Module, distillation: DistillationConfig, tokenizer: Any, args: Any):
        self.distillation = distillation
        if args.n_gpu > 1:
            raise ValueError("A teacher needs one process per GPU (DDP); start the training with torchrun.")
        if distillation.attention:
            _check_attention("student", student)
        teacher = source
        if isinstance(source, (str, PathLike)):
            teacher = _load(source, student)
            _check_tokenizer(source, tokenizer)
        _check(teacher, student, distillation)
        self.model = teacher.to(args.device).eval()
        self._source = str(source) if teacher is not source else type(teacher).__name__
        self._config = getattr(student, "config", None)
        loss = LOSS_MAPPING.get(getattr(student, "loss_type", None))
        self._causal = loss is ForCausalLMLoss and not getattr(self._config, "is_encoder_decoder", False)

    @cached_property
    def record(self) -> dict[str, Any]:
        """Who this is, for the state of a training."""
        weights = fingerprint(self.model.named_parameters())  # hashed once: nothing trains a teacher
        return {"source": self._source, "weights": weights, "distillation": asdict(self.distillation)}

    def loss(self, outputs: Any, inputs: Mapping[str, Any], items: Tensor | int | None) -> Tensor:
        """The teacher's part of the loss: a mean over this batch, or this batch's share of that over `items` labels."""
        with torch.no_grad():
            answers = self.model.eval()(**inputs)  # whoever else holds the teacher may have called train()
        problem_type = getattr(self._config, "problem_type", None)
        part = self.distillation.loss(outputs, answers, inputs, self._causal, problem_type)
        return part if items is None else part * target_labels(inputs, self._causal).ne(-100).sum() / items


def _load(source: str | PathLike, student: nn.Module) -> PreTrainedModel:
    """The model of a directory, of the student's own class; all its weights must have been saved."""
    kind = type(student)
    if not isinstance(student, PreTrainedModel):
        raise ValueError(f"{kind.__name__} has no from_pretrained to load {source} with; give teacher= a model object.")
    words = dict(dtype=student.dtype, attn_implementation=student.config._attn_implementation)
    with torch.random.fork_rng(devices=[]):  # weights that are missing are drawn before they are refused
        model, found = kind.from_pretrained(source, output_loading_info=True, ignore_mismatched_sizes=True, **words)
    missing = [*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])]
    if missing:
        names = ", ".join(sorted(missing)[:3]) + (" ..." if len(missing) > 3 else "")
        raise ValueError(
            f"The teacher {source} lacks {len(missing)} weights of a {kind.__name__}, which would be random: {names}; "
            "give the directory of a model that was fine-tuned on this task."
        )
    return model


def _check_tokenizer(source: str | PathLike, tokenizer: Any) -> None:
    """Raise where the student's tokenizer and that beside the teacher spell differently."""
    ours = getattr(tokenizer, "tokenizer", tokenizer)  # a processor has one in it
    if not hasattr(ours, "get_vocab") or read_json(source, "tokenizer_config.json", {}) is None:
        return
    if AutoTokenizer.from_pretrained(source).get_vocab() != ours.get_vocab():
        raise ValueError(
            f"The tokenizer of the teacher {source} has another vocabulary than processing_class, so that it would "
            "read other words; take a teacher that was fine-tuned with the student's tokenizer."
        )


def _check(teacher: Any, student: nn.Module, distillation: DistillationConfig) -> None:
    """Raise for a teacher that cannot teach this student."""
    if not isinstance(teacher, nn.Module):
        raise TypeError(f"teacher must be a model, or a directory that one was saved in; got {teacher!r}.")
    own = {id(parameter) for parameter in student.parameters()}
    if any(id(parameter) in own for parameter in teacher.parameters()):
        raise ValueError("The teacher is the student, or has weights of it; give a model of its own, or a directory.")
    for name, words in (("num_labels", "labels"), ("vocab_size", "words in its vocabulary")):
        ours, theirs = (_config_value(model, name) for model in (student, teacher))
        if ours != theirs:
            raise ValueError(
                f"The teacher has {theirs} {words} and the student {ours}; take a teacher of the same task and "
                "tokenizer."
            )
    _check_order(*(_config_value(model, "id2label") or {} for model in (student, teacher)))
    _check_shape(teacher, student, distillation)
    if distillation.attention:
        _check_attention("teacher", teacher)


def _check_order(ours: dict[int, str], theirs: dict[int, str]) -> None:
    """Raise where two models have the same labels in another order, as checkpoints of MNLI do."""
    ours, theirs = ([str(labels[index]).lower() for index in sorted(labels)] for labels in (ours, theirs))
    if ours != theirs and sorted(ours) == sorted(theirs):
        raise ValueError(
            f"The teacher's labels are {theirs} and the student's {ours}; load the student with the teacher's "
            "id2label and label2id, and number the rows like them."
        )


def _check_shape(teacher: nn.Module, student: nn.Module, distillation: DistillationConfig) -> None:
    for term, names in (("hidden", ("hidden_size", *_LAYERS)), ("attention", (*_HEADS, *_LAYERS))):
        shapes = [{name: _config_value(model, name) for name in names} for model in (student, teacher)]
        wrong = [name for name in names if shapes[0][name] != shapes[1][name]]
        if getattr(distillation, term) and wrong:
            raise ValueError(
                f"distillation has {term}={getattr(distillation, term)}, which compares layer by layer, but the "
                f"teacher has {wrong[0]}={shapes[1][wrong[0]]} and the student {shapes[0][wrong[0]]}; write {term}=0.0."
            )


def _check_attention(who: str, model: nn.Module) -> None:
    kind = getattr(getattr(model, "config", None), "_attn_implementation", None) or "eager"
    if kind != "eager":
        raise ValueError(
            f"distillation compares attentions, which the {who} does not return with attn_implementation={kind!r}; "
            'load it with from_pretrained(..., attn_implementation="eager").'
        )


def _config_value(model: nn.Module, name: str) -> Any:
    """What a model's config says; of models with several parts, what that of its text says."""
    config = getattr(model, "config", None)
    if name == "vocab_size" and hasattr(config, "get_text_config"):
        config = config.get_text_config()
    return getattr(config, name, None)
