"""Model directories: the layers and weights of a saved model, without loading more of it than is looked at."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from nxm_hf.layers.find import Layer
from nxm_hf.text import shortened

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def skeleton(folder: str | Path) -> PreTrainedModel:
    """The model of a directory without its weights (on the meta device): names, shapes and classes."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no config.json; it must be a directory that save_pretrained wrote.")
    with _plain_errors(path, "is not the config of a model"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    kind = model_class(config, folder)
    with _plain_errors(path, "is not the config of a model"), torch.device("meta"):
        return kind(config)


@contextmanager
def _plain_errors(path: str | Path, what: str) -> Iterator[None]:
    """Whatever transformers finds wrong with a file, and that can be any error, in one line."""
    try:
        yield
    except Exception as error:
        why = str(error).strip().split("\n")[0] or type(error).__name__
        raise ValueError(f"{path} {what}: {why}") from error


def model_class(config: transformers.PreTrainedConfig, folder: str | Path) -> type[PreTrainedModel]:
    """The class of transformers that saved a model."""
    name = (config.architectures or ["none"])[0]
    kind = getattr(transformers, name, None)
    if kind is None:
        raise ValueError(f"{folder} was saved from {name}, which transformers lacks. Load it and verify(model).")
    return kind


class WeightFiles:
    """The safetensors files of a directory, read one tensor at a time."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._stack, self._where = ExitStack(), {}

    def __enter__(self) -> "WeightFiles":
        for path in self._paths():
            try:
                file = self._stack.enter_context(safe_open(path, "pt"))
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{path} cannot be read ({error}). Save the model again.") from error
            self._where.update(dict.fromkeys(file.keys(), file))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def __getitem__(self, name: str) -> Tensor:
        return self._where[name].get_tensor(name)

    def _paths(self) -> list[Path]:
        index = self.folder / INDEX
        if index.is_file():
            return [self.folder / shard for shard in _shards(index)]
        if not (self.folder / WEIGHTS).is_file():
            pickled = next(self.folder.glob("pytorch_model*.bin"), None)
            way = f"{pickled.name} is read by transformers alone: load it and save_pretrained again." if pickled else ""
            raise FileNotFoundError(
                f"{self.folder} holds neither {WEIGHTS} nor {INDEX}; it needs one of them. {way}".strip()
            )
        return [self.folder / WEIGHTS]


def _shards(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} cannot be read ({error!r}). Save the model again.") from error


def load_weights(folder: str | Path, model: nn.Module) -> None:
    """Copy the weights of a directory into a model, in place; what the directory does not name stays as it is."""
    with WeightFiles(folder) as files:
        model.load_state_dict({name: files[name] for name in model.state_dict() if name in files}, strict=False)


def load_model(folder: str | Path) -> PreTrainedModel:
    """The model of a directory, all of it: a weight that is not there would be random."""
    model, missing = load_with_missing(type(skeleton(folder)), folder)
    if missing:
        raise ValueError(f"{folder} lacks {shortened(missing)}. Name a directory that holds the whole model.")
    return model


def load_with_missing(kind: type[PreTrainedModel], folder: str | Path) -> tuple[PreTrainedModel, list[str]]:
    """A model, and the names of the weights that were not there and so were drawn."""
    with _plain_errors(folder, "cannot be loaded"), torch.random.fork_rng(devices=[]):
        model, found = kind.from_pretrained(folder, output_loading_info=True)
    return model, sorted(found["missing_keys"])


def saved_weights(folder: str | Path, model: nn.Module, names: list[str]) -> Iterator[tuple[str, Tensor]]:
    """The weights of these layers as they stand in a directory; `model` is of the class that saved it.

    Some families save under other names than they compute with; those are loaded whole, as a user would.
    """
    keys = {name: f"{name}.weight" for name in names}
    with WeightFiles(folder) as files:
        if all(key in files for key in keys.values()):
            for name, key in keys.items():
                yield name, files[key]
            return
    loaded, drawn = load_with_missing(type(model), folder)
    if missing := [name for name, key in keys.items() if key in drawn]:
        raise ValueError(f"{folder} holds no weight of {shortened(missing)}. Save the model again.")
    for name in names:
        yield name, loaded.get_submodule(name).weight


def layer_weights(folder: str | Path, model: nn.Module, layers: Sequence[Layer]) -> Iterator[Tensor]:
    """The weights of these layers of a skeleton, which must have the shapes that the config says."""
    weights = saved_weights(folder, model, [layer.name for layer in layers])
    for layer, (_, weight) in zip(layers, weights, strict=True):
        if weight.shape != layer.weight.shape:
            raise ValueError(
                f"{layer.name} is {tuple(weight.shape)} in the files of {folder} and {tuple(layer.weight.shape)} by "
                "its config.json. Save the model again."
            )
        yield weight
