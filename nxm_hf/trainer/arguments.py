"""Arguments of a Trainer that are of another kind, or that have another name."""

import difflib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainingArguments

from nxm_hf.config.misplaced import config_with
from nxm_hf.config.versions import takes_tokenizer
from nxm_hf.layers.modules import check_is_model

_NAMES = list(inspect.signature(Trainer.__init__).parameters)[1:]
_OURS = ("sparsity", "teacher", "distillation", "fix_loss_scale")
_OPTIMIZER = ("nxm_hf.AdamW", '{"lr": 5e-5}')  # a class of optimizers and its arguments, as messages show them
_OTHER_NAMES = {"tokenizer": "processing_class", "callback": "callbacks", "optimizer": "optimizers"}


def check_arguments(arguments: Sequence[Any], keywords: Mapping[str, Any]) -> None:
    """Raise for arguments with which Trainer would fail, and say what to write instead.

    Args:
        arguments: The positional arguments for Trainer.
        keywords: Those by name.

    Raises:
        TypeError: If a name is unknown, or the model, the training arguments or the callbacks are of another kind.

    Example:
        >>> check_arguments([], {"optimizer": None})
        Traceback (most recent call last):
        ...
        TypeError: NxMTrainer has no optimizer=. Write optimizers=...
    """
    if len(arguments) > len(_NAMES):
        raise TypeError(f"sparsity is given by name. Write sparsity={arguments[len(_NAMES)]!r}.")
    for name in keywords:
        if name not in _NAMES and not (name == "tokenizer" and takes_tokenizer()):
            raise TypeError(f"NxMTrainer has no {name}=. {_meant(name, keywords[name])}")
    given = {**dict(zip(_NAMES, arguments, strict=False)), **keywords}
    if given.get("model") is not None:
        check_is_model(given["model"])
    args, callbacks = given.get("args"), given.get("callbacks")
    if args is not None and not isinstance(args, TrainingArguments):
        folder = args if isinstance(args, (str, Path)) else "out"
        raise TypeError(f"args must be TrainingArguments; got {args!r}. Write args=TrainingArguments({str(folder)!r}).")
    for name, first, second in (("optimizers", "optimizer", "None"), ("optimizer_cls_and_kwargs", *_OPTIMIZER)):
        if (pair := given.get(name)) is not None and not (isinstance(pair, (tuple, list)) and len(pair) == 2):
            raise TypeError(f"{name} must be a pair; got {_kind(pair)}. Write {name}=({first}, {second}).")
    if isinstance(callbacks, TrainerCallback):
        name = type(callbacks).__name__
        raise TypeError(f"callbacks must be a list; got a {name}. Write callbacks=[{name}(...)].")


def _kind(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"


def _meant(name: str, value: Any) -> str:
    """Return what to write instead of a name that NxMTrainer does not have."""
    if meant := config_with(name, value):
        return f"Write sparsity={meant}."
    near = difflib.get_close_matches(name, [*_NAMES, *_OURS], n=1, cutoff=0.7)
    meant = _OTHER_NAMES.get(name) or (near[0] if near else None)
    return f"Write {meant}=..." if meant else f"It has {', '.join([*_NAMES, *_OURS])}."
