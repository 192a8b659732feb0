"""Load packed directories with transformers: `from_pretrained` makes PackedLinear layers, or a plain dense model.

Importing this file registers the quantization method "nxm" with transformers.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.hooks import add_hook_to_module
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.quantizers import register_quantization_config, register_quantizer
from transformers.utils import logging
from transformers.utils.quantization_config import Mxfp4Config

from nxm_hf.config.hub import read_json
from nxm_hf.config.versions import QuantizerOfAllVersions
from nxm_hf.layers.modules import is_transposed
from nxm_hf.packing.file_names import INDICES, names_in_files
from nxm_hf.packing.format import row_pattern
from nxm_hf.packing.packed_linear import PackedLinear
from nxm_hf.patterns import parse
from nxm_hf.text import shortened

QUANT_METHOD = "nxm"
FORMAT_VERSION = 1

logger = logging.get_logger(__name__)


@register_quantization_config(QUANT_METHOD)
class NxMPackedConfig(Mxfp4Config):
    """Describe the packed layers of a model, as "quantization_config" of its config.json.

    Transformers takes settings of `from_pretrained` over the saved ones for a closed list of configs alone. Of these
    `Mxfp4Config` is the one whose only such setting is `dequantize`; nothing else of it is used.

    Args:
        layers: Pattern of each packed layer, by the layer's name.
        transposed: Names of the packed layers that store their weight as [in, out] when it is dense.
        files: Name in the files of each packed layer that has another one there.
        dequantize: Whether `from_pretrained` unpacks the layers and returns a plain dense model, which can be trained.
        after_loading: A function that is called with the loaded model and makes it one for inference alone. It is not
            saved; `nxm_hf.NxMInference` sets it, for dense directories too.
        format_version: Version of the packed format.
        quant_method: "nxm".

    Raises:
        ValueError: If a newer version wrote the config, or a layer has a pattern that cannot be packed.

    Example:
        >>> NxMPackedConfig({"encoder.layer.0.attention.self.query": "2:4"}).dequantize
        False
    """

    def __init__(
        self,
        layers: dict[str, str] | None = None,
        transposed: list[str] | None = None,
        files: dict[str, str] | None = None,
        dequantize: bool = False,
        after_loading: Callable[[PreTrainedModel], object] | None = None,
        format_version: int = FORMAT_VERSION,
        quant_method: str = QUANT_METHOD,
        **unknown: Any,
    ) -> None:
        if unknown or format_version != FORMAT_VERSION:
            problem = f"has {shortened(sorted(unknown))}" if unknown else f"is of version {format_version}"
            raise ValueError(
                f"The packed format {problem}, which this nxm_hf cannot read. Write: pip install --upgrade nxm-hf."
            )
        odd = [
            name
            for name, value, fits in (
                ("layers", layers, _maps_texts),
                ("files", files, _maps_texts),
                ("transposed", transposed, _lists_texts),
                ("dequantize", dequantize, lambda value: isinstance(value, bool)),
                ("after_loading", after_loading, callable),
            )
            if value is not None and not fits(value)
        ]
        if odd:
            raise ValueError(
                f"quantization_config is damaged: {shortened(odd)} cannot be read. Copy or download the directory "
                "again, or pack it again."
            )
        self.quant_method: Any = QUANT_METHOD
        self.layers, self.transposed = dict(layers or {}), list(transposed or [])
        self.files = {layer: name for layer, name in (files or {}).items() if layer != name}
        self.dequantize, self.after_loading, self.format_version = dequantize, after_loading, format_version
        unfit = {text for text in set(self.layers.values()) if row_pattern(text) is None}
        if wrong := [f"{name} {text}" for name, text in self.layers.items() if text in unfit]:
            raise ValueError(f"quantization_config names patterns that cannot be packed: {shortened(wrong)}.")

    def to_dict(self) -> dict[str, Any]:
        """Return the config as a dict that fits a JSON file."""
        return {
            "quant_method": QUANT_METHOD,
            "format_version": self.format_version,
            "layers": dict(self.layers),
            "transposed": list(self.transposed),
            "files": dict(self.files),
        }

    def get_loading_attributes(self) -> dict[str, Any]:
        """Return the settings that `from_pretrained` takes over the saved ones."""
        return {"dequantize": self.dequantize, "after_loading": self.after_loading}

    def layers_by_file_name(self) -> dict[str, str]:
        """Return the packed layers by their names in the files."""
        return {self.files.get(layer, layer): layer for layer in self.layers}


def _maps_texts(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for pair in value.items() for text in pair)


def _lists_texts(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(text, str) for text in value)


def read_packed_config(folder: str | Path) -> NxMPackedConfig | None:
    """Read which layers of a directory are packed.

    Args:
        folder: Directory of the model.

    Returns:
        The "quantization_config" of its config.json, or None if nothing is packed.

    Raises:
        ValueError: If the config is of a newer version, or is not one of packed layers.
    """
    if not Path(folder).is_dir():  # otherwise the name would be looked for on the Hub
        return None
    payload = (read_json(folder, "config.json", {}) or {}).get("quantization_config")
    if not isinstance(payload, dict) or payload.get("quant_method") != QUANT_METHOD:
        return None
    return NxMPackedConfig(**payload)


@register_quantizer(QUANT_METHOD)
class NxMQuantizer(QuantizerOfAllVersions):
    """Put PackedLinear layers into a model before transformers fills in its weights, and check them afterwards."""

    quantization_config: NxMPackedConfig

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Raise if there is nothing to do: the directory is dense, and no function is given.

        Args:
            *args: Unused.
            **kwargs: Unused.

        Raises:
            ValueError: If so.
        """
        if not self.pre_quantized and self.quantization_config.after_loading is None:
            raise ValueError(
                "This directory is not packed. Pack it: nxm pack DIR OUT, or leave quantization_config out."
            )

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        """Return True: `save_pretrained` writes a packed directory again.

        Args:
            *args: Unused.
            **kwargs: Unused.

        Raises:
            RuntimeError: If the model was made one for inference alone.
        """
        if self.quantization_config.after_loading is not None:
            raise RuntimeError(
                "A model that was loaded with NxMInference cannot be saved. Load it without quantization_config, and "
                "save that: model.save_pretrained(dir), or nxm_hf.save_packed(model, dir)."
            )
        return True

    @property
    def is_trainable(self) -> bool:
        """Return False, and log how to load a model that can be trained."""
        logger.warning_once(
            "Packed layers cannot be trained. Load a dense model that can: "
            "from_pretrained(dir, quantization_config=nxm_hf.NxMPackedConfig(dequantize=True))."
        )
        return False

    @property
    def is_compileable(self) -> bool:
        """Return True: `torch.compile` takes PackedLinear."""
        return True

    def get_state_dict_and_metadata(self, model: PreTrainedModel, *args: Any) -> tuple[None, dict[str, str]]:
        """Update the config, which is saved next, with the names that the layers get in the files.

        Args:
            model: The model that is saved.
            *args: Unused.
        """
        config = self.quantization_config
        config.files = {layer: name for layer, name in names_in_files(model, config.layers).items() if layer != name}
        return None, {}

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        """Replace the packed layers of a skeleton, which is on the meta device."""
        config = self.quantization_config
        config.layers = _names_here(model, config)
        modules = {name: model.get_submodule(name) for name in config.layers}
        if odd := [
            name for name, module in modules.items() if not (isinstance(module, nn.Linear) or is_transposed(module))
        ]:
            kinds = shortened([f"{name or 'the model'} is a {type(modules[name]).__name__}" for name in odd])
            raise ValueError(f"quantization_config names layers that cannot be packed: {kinds}. Pack the model again.")
        config.transposed = [name for name in config.layers if is_transposed(model.get_submodule(name))]
        self._dense_layers = {name: model.get_submodule(name) for name in config.layers}
        patterns = {text: parse(text) for text in set(config.layers.values())}
        for name, layer in self._dense_layers.items():
            model.set_submodule(name, PackedLinear.like(layer, patterns[config.layers[name]]))
        tensors = model.state_dict(keep_vars=True)
        self._skeleton = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
        return model

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        """Check what was loaded, and unpack it if the config says so."""
        _repair_dtypes(model, self._skeleton)
        for name in self.quantization_config.layers:
            layer = cast(PackedLinear, model.get_submodule(name))
            layer.requires_grad_(False)
            if not layer.weight.is_meta:  # on the meta device: offloaded
                self._check_present(layer, name)
                layer.check(name)
        if self.quantization_config.dequantize:
            self._dequantize(model)
        if self.quantization_config.after_loading is not None:
            self.quantization_config.after_loading(model)
        return model

    def _check_present(self, layer: PackedLinear, name: str) -> None:
        """Raise if transformers has not found the tensors of a layer in the files and has filled in others."""
        tensors: dict[str, Tensor | nn.Parameter] = {"weight": layer.weight, INDICES: layer.weight_nxm_idx}
        if absent := [key for key, tensor in tensors.items() if not self.is_loaded(f"{name}.{key}", tensor)]:
            raise ValueError(
                f"{name} is packed by config.json, and the files hold no fitting {' and '.join(absent)} of it. Copy or "
                "download the directory again, or pack it again."
            )

    def _dequantize(self, model: PreTrainedModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
        """Put the dense layers back, one at a time. Each has the type of its packed one unless another is asked for."""
        if dtype == model.config.dtype:  # what `model.dequantize()` passes by default
            dtype = None
        for name, dense in self._dense_layers.items():
            packed = cast(PackedLinear, model.get_submodule(name))
            if packed.weight.is_meta:
                raise ValueError(f"{name} is offloaded, so it cannot be unpacked. Load with device_map=None.")
            packed.fill(dense, dtype)
            if (hook := getattr(packed, "_hf_hook", None)) is not None:  # of a device_map
                add_hook_to_module(dense, hook)
            model.set_submodule(name, dense)
        return model


def _names_here(model: PreTrainedModel, config: NxMPackedConfig) -> dict[str, str]:
    """Return the layers that a model has, by their names in it.

    A model without its head (AutoModel) lacks the prefix that the head's class gives to it, and the other way round.
    Another version of transformers may compute with the names of the files. Layers of parts that the model does not
    have are left out, as their weights are.
    """
    modules, prefix = dict(model.named_modules()), f"{model.base_model_prefix}."
    names = {}
    for layer, pattern in config.layers.items():
        saved = (layer, config.files.get(layer, layer))
        candidates = [form for name in saved for form in (name, name.removeprefix(prefix), f"{prefix}{name}")]
        if (here := next((candidate for candidate in candidates if candidate in modules), None)) is not None:
            names[here] = pattern
    return names


def _repair_dtypes(model: PreTrainedModel, skeleton: dict[str, tuple[torch.Size, torch.dtype]]) -> None:
    """Give weights the type that was asked for; raise for one of another shape.

    In a quantized model the oldest versions of transformers do neither for weights whose names lose or gain a prefix.
    They also turn the indices of modules that are kept in float32 into floats.
    """
    plan = getattr(model, "dtype_plan", {})  # the modules that a model keeps in float32
    for name, tensor in model.state_dict(keep_vars=True).items():
        shape, dtype = skeleton.get(name, (tensor.shape, tensor.dtype))
        if tensor.shape != shape:
            raise ValueError(f"{name} is {tuple(tensor.shape)} in the files; this model needs {tuple(shape)}.")
        if dtype.is_floating_point:
            dtype = next((kept for module, kept in plan.items() if re.search(module, name)), dtype)
        if tensor.dtype != dtype and not tensor.is_meta:
            tensor.data = tensor.data.to(dtype)
