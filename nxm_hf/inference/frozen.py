"""FrozenLinear: the base class of linear layers that compute with packed weights."""

import torch
from torch import Tensor, nn


class FrozenLinear(nn.Module):
    """Refuse what a layer with a packed weight cannot do: be trained, and be saved."""

    def prepared(self, inputs: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the inputs in the type that the dense layer would compute in.

        Args:
            inputs: The inputs.
            dtype: The type of the weight.

        Raises:
            RuntimeError: If a gradient with respect to the inputs is asked for, or their type is another one.
        """
        if inputs.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                "A model after to_inference computes no gradients. Call it under torch.no_grad(), or train the dense "
                "model."
            )
        if torch.is_autocast_enabled(inputs.device.type):
            return inputs.to(torch.get_autocast_dtype(inputs.device.type))
        if inputs.dtype != dtype:
            raise RuntimeError(f"The inputs are {inputs.dtype} and the weight is {dtype}; they must be equal.")
        return inputs

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        raise RuntimeError(
            f"{prefix.removesuffix('.')} computes with a packed weight after to_inference and cannot be saved. Save "
            "the model before to_inference: model.save_pretrained(dir), or nxm_hf.save_packed(model, dir)."
        )
