"""Files of a saved model: read its config, its skeleton and single weights, or load it whole."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn
from torch.utils._device import DeviceContext
from transformers import AutoConfig, PreTrainedModel

from nxm_hf.config.hub import model_folder
from nxm_hf.layers.find import Layer
from nxm_hf.packing import NxMPackedConfig, read_packed_config
from nxm_hf.storage.converted_weights import ConvertedWeights
from nxm_hf.storage.size_limits import check_bytes, check_counts, limited_parameters
from nxm_hf.storage.weight_files import WeightFiles, variant_to_read
from nxm_hf.text import shortened

# What modules of torch fill their weights with when they are made.
_FILLS = {
    *(nn.init.kaiming_uniform_, nn.init.uniform_, nn.init.normal_, nn.init.constant_),
    *(Tensor.uniform_, Tensor.normal_, Tensor.fill_, Tensor.zero_),
}
READ_AT_ONCE = 32 << 20  # bytes
_View = Callable[[WeightFiles, nn.Module], WeightFiles | ConvertedWeights]


def skeleton(folder: str | Path) -> PreTrainedModel:
    """Build the model of a directory on the meta device: names, shapes and classes without weights.

    Args:
        folder: Directory of the model.

    Returns:
        The model without weights.

    Raises:
        FileNotFoundError: If there is no `config.json`.
        ValueError: If it is not the config of a model that transformers has.
    """
    config = read_model_config(folder)
    if read_packed_config(model_folder(folder)) is not None:
        del config.quantization_config
    cls = model_class(config, folder)
    path = model_folder(folder) / "config.json"
    with limited_parameters(path), _one_line_errors(path, "is not the config of a model"), _WithoutMemory():
        return cls(config)


class _WithoutMemory(DeviceContext):
    """Make tensors on the meta device, as `torch.device("meta")` does, and leave out what would fill them.

    torch fills them step by step in Python, which takes as long as all else that a model is made of.
    """

    def __init__(self) -> None:
        super().__init__(torch.device("meta"))

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Return the tensor to fill if it is on the meta device; else call the function.

        Args:
            func: A function of torch.
            types: Types of its arguments.
            args: Its arguments.
            kwargs: Its arguments by name.
        """
        if func in _FILLS:
            tensor = kwargs["tensor"] if kwargs and "tensor" in kwargs else args[0]
            if tensor.is_meta:
                return tensor
        return super().__torch_function__(func, types, args, kwargs)


def read_model_config(folder: str | Path) -> Any:
    """Read the config of a model, unless it asks for a far larger one than the directory holds.

    Args:
        folder: Directory of the model.

    Returns:
        The config, of the class that its model type has in transformers.

    Raises:
        FileNotFoundError: If there is no `config.json`.
        ValueError: If it is not the config of a model that transformers has.
    """
    path = model_folder(folder) / "config.json"
    if not path.is_file():
        problem = "is a file" if Path(folder).is_file() else "does not exist"
        held = "holds no config.json" if Path(folder).is_dir() else problem
        raise FileNotFoundError(f"{folder} {held}; it must be a directory that save_pretrained wrote.")
    check_counts(path)
    with _one_line_errors(path, "is not the config of a model"):
        return AutoConfig.from_pretrained(path.parent, trust_remote_code=False)


@contextmanager
def _one_line_errors(path: str | Path, problem: str) -> Iterator[None]:
    """Turn any error of transformers about a file into a ValueError of one line that names the file."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:300] or type(error).__name__
        raise ValueError(f"{path} {problem}: {reason}") from error


def model_class(config: transformers.PretrainedConfig, folder: str | Path) -> type[PreTrainedModel]:
    """Return the class of transformers that saved a model.

    Args:
        config: The model's config.
        folder: Directory of the model, for the error.

    Returns:
        The class.

    Raises:
        ValueError: If transformers has no such class.
    """
    names = config.architectures if isinstance(config.architectures, list) else []
    name = str(names[0])[:200] if names else "none"
    cls = getattr(transformers, name, None)
    if not (isinstance(cls, type) and issubclass(cls, PreTrainedModel)):
        raise ValueError(f"{folder} was saved from {name}, which transformers lacks. Load it and verify(model).")
    return cls


def load_model(folder: str | Path) -> PreTrainedModel:
    """Load the model of a directory, in the class that saved it.

    Args:
        folder: Directory of the model.

    Returns:
        The model.

    Raises:
        ValueError: If a weight is missing, because transformers would fill it with random numbers.
    """
    empty = skeleton(folder)
    check_bytes(folder, empty)
    model, missing = load_with_missing(type(empty), folder)
    if missing:
        raise ValueError(f"{folder} lacks {shortened(missing)}. Name a directory that holds the complete model.")
    return model


def load_model_on(folder: str | Path, device: str | None, dtype: str | None) -> PreTrainedModel:
    """Load a model onto a device and in a type.

    Args:
        folder: Directory of the model.
        device: Name of the device; by default the CPU.
        dtype: Name of the type, such as "bfloat16"; by default that of the model.

    Returns:
        The model.

    Raises:
        ValueError: If this machine has no such device.
    """
    place = find_device(device)
    loaded: nn.Module = load_model(folder)
    loaded.to(device=place, dtype=getattr(torch, dtype) if dtype else None)
    return cast(PreTrainedModel, loaded)


def find_device(name: str | None) -> torch.device:
    """Return a device of this machine.

    Args:
        name: Its name, such as "cuda:1"; by default the CPU.

    Raises:
        ValueError: If there is none of this name.
    """
    try:
        return torch.empty(0, device=name or "cpu").device
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch raises these for what is not there
        reason = str(error).strip().split("\n")[0].rstrip(".")
        usable = "cpu, cuda or cuda:1" if torch.cuda.is_available() else "cpu"
        raise ValueError(f"device={name} cannot be used: {reason}. Write {usable}.") from None


def load_with_missing(
    cls: type[PreTrainedModel], folder: str | Path, **options: Any
) -> tuple[PreTrainedModel, list[str]]:
    """Load a model, and list the weights that were missing and have random values.

    Args:
        cls: The class of the model.
        folder: Directory of the model.
        **options: Arguments of `from_pretrained`, such as `num_labels`.

    Returns:
        The model and the names of the missing weights. The global random state is not touched.

    Raises:
        ValueError: If transformers cannot load it.
    """
    with _one_line_errors(folder, "cannot be loaded"), torch.random.fork_rng(devices=[]):
        folder = model_folder(folder)
        if read_packed_config(folder) is not None:
            options = {"quantization_config": NxMPackedConfig(dequantize=True), **options}
        if (variant := variant_to_read(folder)) is not None:
            options = {"variant": variant, **options}
        loaded: Any = cls.from_pretrained(folder, output_loading_info=True, **options)
    model, info = loaded
    return model, sorted(info["missing_keys"])


def saved_weights(folder: str | Path, model: nn.Module, layers: Sequence[Layer]) -> Iterator[tuple[str, Tensor]]:
    """Read the weights of layers from a directory.

    Some families save weights under other names than they compute with, or each expert on its own. If a weight is saved
    joined with others, the model is loaded whole.

    Args:
        folder: Directory of the model.
        model: A model of the class that saved it.
        layers: The layers.

    Yields:
        Each name with its weight.

    Raises:
        ValueError: If a layer has no weight in the files.
    """
    views: tuple[Callable[[WeightFiles, nn.Module], WeightFiles | ConvertedWeights], ...] = (
        _as_saved,
        ConvertedWeights,
    )
    for view in views:
        with WeightFiles(folder) as files:
            weights = view(files, model)
            if any(layer.key not in weights for layer in layers):
                continue
        for part in _parts(layers):
            with WeightFiles(folder) as files:
                weights = view(files, model)
                yield from ((layer.name, weights[layer.key]) for layer in part)
        return
    check_bytes(folder, model)
    loaded, missing = load_with_missing(cast(type[PreTrainedModel], type(model)), folder)
    if absent := [layer.name for layer in layers if layer.key in missing]:
        raise ValueError(f"{folder} holds no weight of {shortened(absent)}. Save the model again.")
    for layer in layers:
        yield layer.name, loaded.get_parameter(layer.key)


def _as_saved(files: WeightFiles, _: nn.Module) -> WeightFiles:
    return files


def _parts(layers: Sequence[Layer]) -> Iterator[list[Layer]]:
    """Split layers into parts that are read before files are closed: until then, what was read counts as memory."""
    part: list[Layer] = []
    for layer in layers:
        part.append(layer)
        if sum(each.weight.nbytes for each in part) > READ_AT_ONCE:
            yield part
            part = []
    if part:
        yield part


def layer_weights(folder: str | Path, model: nn.Module, layers: Sequence[Layer]) -> Iterator[Tensor]:
    """Read the weights of layers from a directory, and check their shapes against the model's config.

    Args:
        folder: Directory of the model.
        model: Its skeleton.
        layers: Layers of the skeleton.

    Yields:
        The weights, in the order of the layers.

    Raises:
        ValueError: If a weight is missing or has another shape.
    """
    for layer, (_, weight) in zip(layers, saved_weights(folder, model, layers), strict=True):
        if weight.shape != layer.weight.shape:
            raise ValueError(
                f"{layer.name} has the shape {tuple(weight.shape)} in the files of {folder}, and "
                f"{tuple(layer.weight.shape)} by its config.json. Save the model again."
            )
        yield weight
