"""Arguments of `prune` that stand in another place, or that have another name."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from nxm_hf import pruners
from nxm_hf.layers.modules import check_is_model
from nxm_hf.pruners import OneShot

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


def check_order(model: object, pattern: object) -> None:
    """Raise if another argument stands where the model or the pattern should.

    Args:
        model: The first argument of `prune`.
        pattern: The second one.

    Raises:
        TypeError: If the first one is neither a model nor a path.
        ValueError: If the second one is a method.
    """
    if isinstance(pattern, nn.Module):
        raise TypeError(f"prune takes the model first. Write prune(model, {model!r}).")
    if not isinstance(model, (str, Path)):
        check_is_model(model)
    if pattern in pruners.names():
        raise ValueError(f"{pattern!r} is a method, and a pattern comes before it. Write method={pattern!r}.")


def check_settings(method: str | OneShot, settings: Mapping[str, Any], arguments: Sequence[str]) -> None:
    """Raise for a setting that the method does not have and that looks like an argument of `prune`.

    Args:
        method: A name of a method, or a method object.
        settings: The settings by name.
        arguments: The names of the arguments of `prune`.

    Raises:
        ValueError: If there is such a setting. The message names the argument.
    """
    own = pruners.settings(method) if isinstance(method, str) else {}
    for name in settings:
        near = difflib.get_close_matches(name, [*own, *arguments], n=1, cutoff=0.7)
        meant = _OTHER_NAMES.get(name) or (near[0] if near else None)
        if name not in own and meant is not None:
            raise ValueError(f"prune has no {name}=; write {meant}=.")
