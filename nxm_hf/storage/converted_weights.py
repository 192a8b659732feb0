"""Converted weights: read tensors by their names in memory from files that hold them under others, or in pieces."""

import torch
from torch import Tensor, nn

from nxm_hf.packing import keys_in_files, pieces_in_files
from nxm_hf.storage.weight_files import WeightFiles


class ConvertedWeights:
    """Read the weights of a saved model one at a time, by the names that they have in memory.

    Transformers saves many models under the names of their first checkpoints. Examples are ViT, Swin and AST, and
    Mixtral with one tensor for each matrix of an expert. This class reverses that conversion.

    Args:
        files: The open files.
        model: A model of the class that saved them, without wrappers, with or without weights.
    """

    def __init__(self, files: WeightFiles, model: nn.Module):
        self._files, self._model = files, model
        self._shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
        self._names = keys_in_files(model)

    def __contains__(self, key: str) -> bool:
        if key in self._names:
            return self._names[key] in self._files
        pieces, files = self._pieces(key, "meta"), self._files
        fit = all(name in files and files.entry(name).shape == tuple(piece.shape) for name, piece in pieces.items())
        return bool(pieces) and fit and sum(piece.numel() for piece in pieces.values()) == self._shapes[key].numel()

    def __getitem__(self, key: str) -> Tensor:
        if key in self._names:
            return self._files[self._names[key]]
        pieces = self._pieces(key, "cpu")
        whole: Tensor | None = None
        for name, places in pieces.items():
            piece = self._files[name]
            whole = torch.empty(self._shapes[key].numel(), dtype=piece.dtype) if whole is None else whole
            whole[places.flatten()] = piece.flatten()
        if whole is None:
            raise KeyError(key)
        return whole.view(self._shapes[key])

    def names(self, key: str) -> list[str]:
        """Return the names in the files of a tensor of the model; of one that is saved in pieces, those of them all.

        Args:
            key: The name of the tensor in the state dict of the model.
        """
        return [self._names[key]] if key in self._names else list(self._pieces(key, "meta"))

    def part(self, key: str, name: str, tensor: Tensor) -> Tensor:
        """Return what is saved of a tensor under one of its names.

        Args:
            key: The name of the tensor in the state dict of the model.
            name: One of `names(key)`.
            tensor: The tensor.
        """
        if key in self._names:
            return tensor
        return tensor.flatten()[self._pieces(key, str(tensor.device))[name]]

    def _pieces(self, key: str, device: str) -> dict[str, Tensor]:
        return pieces_in_files(self._model, key, self._shapes[key], device) if key in self._shapes else {}
