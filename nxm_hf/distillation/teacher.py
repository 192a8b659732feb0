"""Teacher: the model that a student learns from, loaded from a directory or given, and checked against the student."""

from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss

from nxm_hf.config.hub import looks_like_path, read_json
from nxm_hf.distillation.loss import DistillationConfig, target_labels
from nxm_hf.layers.modules import inner_models
from nxm_hf.storage.state_file import fingerprint

# The attributes in which configs keep the number of layers and the number of heads.
_LAYERS = ("num_hidden_layers", "num_decoder_layers", "encoder_layers", "decoder_layers")
_HEADS = ("num_attention_heads", "encoder_attention_heads", "decoder_attention_heads")


class DeviceArguments(Protocol):
    """The part of `TrainingArguments` that says where the student is."""

    @property
    def n_gpu(self) -> int:
        """Number of GPUs that this process uses."""

    @property
    def device(self) -> torch.device:
        """Device of the student."""


class Teacher:
    """A frozen model whose outputs enter the loss of a student.

    Args:
        source: A model, or a directory that one was saved in.
        student: The model that is trained.
        distillation: The weights of the terms of the loss.
        tokenizer: The student's `processing_class`, if it has one.
        args: The `TrainingArguments`, for the device.

    Raises:
        FileNotFoundError: If there is no such directory, and no such model in reach.
        ValueError: If the teacher lacks weights, or its labels, vocabulary or shape do not fit the student. Also if the
            student is a container, such as a SentenceTransformer.
        TypeError: If `source` is neither a model nor a path.
    """

    def __init__(
        self,
        source: nn.Module | str | PathLike[str],
        student: nn.Module,
        distillation: DistillationConfig,
        tokenizer: Any,
        args: DeviceArguments,
    ) -> None:
        self.distillation = distillation
        if inner_models(student):
            raise ValueError(
                f"A {type(student).__name__} returns a loss without outputs, so teacher= has nothing to compare. Use a "
                "distillation loss of its library instead, as sentence-transformers' MSELoss."
            )
        if args.n_gpu > 1:
            raise ValueError("A teacher needs one process per GPU (DDP); start the training with torchrun.")
        if distillation.attention:
            _check_attention("student", student)
        if isinstance(source, (str, PathLike)):
            _check_source(source)
            teacher: nn.Module = _load(source, student)
            _check_tokenizer(source, tokenizer)
            self._source = str(source)
        else:
            teacher = source
            self._source = type(teacher).__name__
        _check(teacher, student, distillation)
        self.model = teacher.to(args.device).eval()
        self._student_config = getattr(student, "config", None)
        loss = LOSS_MAPPING.get(getattr(student, "loss_type", None) or "")
        self._causal = loss is ForCausalLMLoss and not getattr(self._student_config, "is_encoder_decoder", False)

    @cached_property
    def record(self) -> dict[str, Any]:
        """The source, the fingerprint of the weights and the distillation settings, for the state of a training."""
        weights = fingerprint(self.model.named_parameters())  # hashed once: a teacher is never trained
        return {"source": self._source, "weights": weights, "distillation": asdict(self.distillation)}

    def loss(self, outputs: Any, inputs: Mapping[str, Any], items: Tensor | int | None) -> Tensor:
        """Return the teacher's part of the loss.

        Args:
            outputs: The outputs of the student for `inputs`.
            inputs: The batch.
            items: The number of labels of all parts of the batch. With None, the loss is a mean over this part.
                Otherwise that mean is multiplied by this part's share of the labels.
        """
        with torch.no_grad():
            answers = self.model.eval()(**inputs)  # code that shares the teacher may have called train()
        problem_type = getattr(self._student_config, "problem_type", None)
        loss = self.distillation.loss(outputs, answers, inputs, self._causal, problem_type)
        if items is None:
            return loss
        labels = target_labels(inputs, self._causal)
        assert labels is not None  # they were counted
        return loss * labels.ne(-100).sum() / items


def _check_source(source: str | PathLike[str]) -> None:
    """Raise unless a source is a directory, or has the form of a model's full name on the Hub."""
    if not Path(source).is_dir() and (not isinstance(source, str) or "/" not in source or looks_like_path(source)):
        raise FileNotFoundError(
            f"There is no directory {source} to load the teacher from. Write teacher=MODEL, the path of a saved model, "
            "or its full name on the Hub, OWNER/NAME."
        )


def _load(source: str | PathLike[str], student: nn.Module) -> PreTrainedModel:
    """Load a model of the student's class from a directory, and raise if any of its weights was not saved."""
    if not isinstance(student, PreTrainedModel):
        raise ValueError(
            f"{type(student).__name__} has no from_pretrained to load {source} with; give teacher= a model object."
        )
    model_class = type(student)
    kwargs: dict[str, Any] = dict(dtype=student.dtype, attn_implementation=student.config._attn_implementation)
    # Missing weights are initialized before they are refused; that must not change the random state of the training.
    with torch.random.fork_rng(devices=[]):
        try:
            loaded: Any = model_class.from_pretrained(
                source, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
            )
        except OSError as error:
            reason = str(error).strip().split("\n")[0]
            raise FileNotFoundError(f"The teacher {source} cannot be loaded: {reason}") from error
    model, loading_info = loaded
    missing = [*loading_info["missing_keys"], *(key for key, *_ in loading_info["mismatched_keys"])]
    if missing:
        names = ", ".join(sorted(missing)[:3]) + (" ..." if len(missing) > 3 else "")
        raise ValueError(
            f"The teacher {source} lacks {len(missing)} weights of a {model_class.__name__}, so they would be "
            f"random: {names}; give the directory of a model that was fine-tuned on this task."
        )
    return model


def _check_tokenizer(source: str | PathLike[str], tokenizer: Any) -> None:
    """Raise if the tokenizer in the teacher's directory has another vocabulary than the student's."""
    ours = getattr(tokenizer, "tokenizer", tokenizer)  # a processor has one in it
    if not hasattr(ours, "get_vocab") or read_json(Path(source), "tokenizer_config.json", {}) is None:
        return
    if AutoTokenizer.from_pretrained(source).get_vocab() != ours.get_vocab():
        raise ValueError(
            f"The tokenizer of the teacher {source} has another vocabulary than processing_class, so the same token "
            "ids mean other words. Take a teacher that was fine-tuned with the student's tokenizer."
        )


def _check(teacher: Any, student: nn.Module, distillation: DistillationConfig) -> None:
    """Raise if this student cannot learn from this teacher."""
    if not isinstance(teacher, nn.Module):
        raise TypeError(f"teacher must be a model, or a directory that one was saved in; got {teacher!r}.")
    own = {id(parameter) for parameter in student.parameters()}
    if any(id(parameter) in own for parameter in teacher.parameters()):
        raise ValueError(
            "The teacher is the student, or shares weights with it; give a separate model, or a directory."
        )
    for name, noun in (("num_labels", "labels"), ("vocab_size", "words in its vocabulary")):
        ours, theirs = _config_value(student, name), _config_value(teacher, name)
        if ours != theirs:
            raise ValueError(
                f"The teacher has {theirs} {noun} and the student {ours}; take a teacher of the same task and "
                "tokenizer."
            )
    ours, theirs = (getattr(model, "loss_type", None) for model in (student, teacher))
    if None not in (ours, theirs) and ours != theirs:
        raise ValueError(
            f"The teacher is a {type(teacher).__name__} and the student a {type(student).__name__}, whose outputs "
            "cannot be compared; take a teacher of the same task."
        )
    _check_label_order(_config_value(student, "id2label") or {}, _config_value(teacher, "id2label") or {})
    _check_shape(teacher, student, distillation)
    if distillation.attention:
        _check_attention("teacher", teacher)


def _check_label_order(ours: dict[int, str], theirs: dict[int, str]) -> None:
    """Raise if two models have the same labels in another order, as checkpoints of MNLI do."""
    our_labels, their_labels = ([str(labels[i]).lower() for i in sorted(labels)] for labels in (ours, theirs))
    if our_labels != their_labels and sorted(our_labels) == sorted(their_labels):
        raise ValueError(
            f"The teacher's labels are {their_labels} and the student's {our_labels}; load the student with the "
            "teacher's id2label and label2id, and number the rows like them."
        )


def _check_shape(teacher: nn.Module, student: nn.Module, distillation: DistillationConfig) -> None:
    """Raise if a term compares layer by layer, but the models differ in layers, channels or heads."""
    for term, names in (("hidden", ("hidden_size", *_LAYERS)), ("attention", (*_HEADS, *_LAYERS))):
        ours, theirs = ({name: _config_value(model, name) for name in names} for model in (student, teacher))
        wrong = [name for name in names if ours[name] != theirs[name]]
        if getattr(distillation, term) and wrong:
            raise ValueError(
                f"distillation has {term}={getattr(distillation, term)}, which compares layer by layer, but the "
                f"teacher has {wrong[0]}={theirs[wrong[0]]} and the student {ours[wrong[0]]}; write {term}=0.0."
            )


def _check_attention(who: str, model: nn.Module) -> None:
    implementation = getattr(getattr(model, "config", None), "_attn_implementation", None) or "eager"
    if implementation != "eager":
        raise ValueError(
            f"distillation compares attentions, which the {who} does not return with "
            f'attn_implementation={implementation!r}; load it with from_pretrained(..., attn_implementation="eager").'
        )


def _config_value(model: nn.Module, name: str) -> Any:
    """Return an attribute of the model's config, or None. The vocabulary is that of the part that reads text."""
    config: Any = getattr(model, "config", None)
    if name == "vocab_size" and hasattr(config, "get_text_config"):
        config = config.get_text_config()
    return getattr(config, name, None)
