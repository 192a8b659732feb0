"""Differences between the supported versions of transformers.

Supported are transformers 4.57.1 to 5.x, huggingface_hub 0.34, accelerate 1.15, torch 2.6 and later ones, and Python
3.10 to 3.13. The rest of nxm_hf is written for the newest of them:

- 4.57 saves weights under the names that they have in memory; only some models of images and text have rules. See
  `as_saved`.
- 4.57 marks no tensor that it has loaded, and leaves the config of packed layers in a model that was unpacked. See
  `QuantizerOfAllVersions`.
- 4.57 to 5.3 do not load the best model with `save_strategy="best"`. See `forgets_best`.
- 4.57 takes the tokenizer of a Trainer under its old name too. See `takes_tokenizer`.
- 4.57 has no name `PreTrainedConfig`. `transformers.PretrainedConfig` is the same class in every version.
- 4.57 leaves `bf16=True` of one training on for all later ones of the process.
- Models of 4.57 that ignore `num_items_in_batch` do not accept it, so Trainer divides their loss itself.
"""

import re
from typing import Any

import transformers
from torch import Tensor
from transformers import PreTrainedModel, modeling_utils
from transformers.quantizers import HfQuantizer

try:
    from transformers.core_model_loading import revert_weight_conversion
except ImportError:  # 4.57
    revert_weight_conversion = None  # type: ignore[assignment]


def as_saved(model: PreTrainedModel, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what `save_pretrained` would write of tensors, by their names in files.

    Args:
        model: The model, with or without weights.
        tensors: Some of its tensors, or others of their names.

    Raises:
        Exception: If the conversion of this model joins or splits tensors, and does not find all that it needs.
    """
    if revert_weight_conversion is not None:
        saved: dict[str, Any] = revert_weight_conversion(model, dict(tensors))
        return saved
    rules = {}
    kinds = [cls.__name__.lower() for cls in type(model).__mro__]
    if any(word in kind for kind in kinds for word in modeling_utils.VLMS):
        rules = {
            new: re.sub(r"\(.*\)", "", old.lstrip("^")) for old, new in model._checkpoint_conversion_mapping.items()
        }
    return {model._fix_state_dict_key_on_save(_renamed(key, rules))[0]: tensor for key, tensor in tensors.items()}


def _renamed(key: str, rules: dict[str, str]) -> str:
    """Apply the first rule, from a pattern to its replacement, that changes the key."""
    changed = (re.sub(pattern, new, key) for pattern, new in rules.items() if re.search(pattern, key))
    return next(changed, key)


class QuantizerOfAllVersions(HfQuantizer):
    """A quantizer that records which tensors the files lack, and removes its config from a model that it unpacked."""

    _loaded: frozenset[str] | None = None

    def update_expected_keys(self, model: PreTrainedModel, expected_keys: list[str], loaded_keys: list[str]) -> Any:
        """Note what the files hold; 4.57 alone calls this, last with the tensors that have the right shape.

        Args:
            model: The model.
            expected_keys: The names of its tensors.
            loaded_keys: Those that are read from files.

        Returns:
            The expected names, unchanged.
        """
        self._loaded = frozenset(loaded_keys)
        return expected_keys

    def is_loaded(self, name: str, tensor: Tensor) -> bool:
        """Return True if a tensor of the loaded model was read from a file, and was not filled in.

        Args:
            name: Its name in the model.
            tensor: The tensor.
        """
        if self._loaded is not None:
            return name in self._loaded
        return bool(getattr(tensor, "_is_hf_initialized", False))

    def postprocess_model(self, model: PreTrainedModel, **kwargs: Any) -> Any:
        """Finish a loaded model as the newest version does.

        Args:
            model: The model.
            **kwargs: As in transformers.

        Returns:
            The model.
        """
        if revert_weight_conversion is not None:
            return super().postprocess_model(model, **kwargs)
        model.config.quantization_config = self.quantization_config
        processed = super().postprocess_model(model, **kwargs)
        if getattr(self.quantization_config, "dequantize", False):
            self.remove_quantization_config(model)
        return processed


def forgets_best(version: str = transformers.__version__) -> bool:
    """Return True if Trainer does not load the best model at the end with `save_strategy="best"`.

    Args:
        version: The version of transformers.

    Example:
        >>> forgets_best("5.3.0"), forgets_best("5.4.0")
        (True, False)
    """
    return tuple(int(part) for part in version.split(".")[:2]) < (5, 4)


def takes_tokenizer(version: str = transformers.__version__) -> bool:
    """Return True if Trainer still takes `tokenizer=`, the old name of `processing_class=`.

    Args:
        version: The version of transformers.

    Example:
        >>> takes_tokenizer("4.57.6"), takes_tokenizer("5.0.0")
        (True, False)
    """
    return int(version.split(".")[0]) < 5
