"""Check on one example that reordering channels leaves the model's outputs unchanged."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nxm_hf.layers.example_inputs import example_inputs
from nxm_hf.layers.modules import eval_no_grad

TOKENS = 8
_TOLERANCE = 1e-4  # of the norm, in fp32 and fp64
_HALF_TOLERANCE = 2e-2
# (layer, its input, its output) -> another output to use, or None
CallHandler = Callable[[str, Tensor, Tensor], Tensor | None]


class EquivalenceCheck:
    """Compares a model with itself before its layers were permuted, on one example.

    `record` runs the model before. `differences` runs it again, and replaces the output of each layer by its recorded
    output. So each layer is judged alone, and rounding does not add up from layer to layer. The input of each layer
    must be the recorded input in the new order.

    Args:
        model: The model, without wrappers.
        layers: The layers whose inputs are compared, by name.
        example: The arguments of the model.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, nn.Module], example: Mapping[str, Any]):
        self._model, self._layers, self._example = model, layers, example
        self._inputs: dict[str, list[Tensor]] = {name: [] for name in layers}
        self._outputs: dict[str, list[Tensor]] = {name: [] for name in layers}
        self._answer: list[Tensor] = []

    @classmethod
    def record(
        cls, model: nn.Module, layers: Mapping[str, nn.Module], example: Mapping[str, Any] | None
    ) -> "EquivalenceCheck":
        """Run the model on an example, and record the inputs and outputs of the layers.

        Args:
            model: The model, without wrappers.
            layers: The layers whose inputs will be compared, by name.
            example: The arguments of the model; by default a random text or image.

        Returns:
            The check.

        Raises:
            ValueError: If the model cannot be run on the example, or returns NaN.
        """
        try:
            check = cls(model, layers, _random_example(model) if example is None else dict(example))
            check._answer = check._run(check._remember)
        except Exception as error:  # a model can fail in any way on an example that does not suit it
            reason = str(error).strip().split("\n")[0]
            raise ValueError(
                f"{type(model).__name__} could not be run on an example, to see that nothing changes: {reason}. "
                "Give inputs=, one batch as a dict."
            ) from error
        if any(bool(part.isnan().any()) for part in check._answer):
            raise ValueError(f"{type(model).__name__} answers an example with NaN. Load an earlier checkpoint.")
        return check

    def differences(self, orders: Mapping[str, Tensor]) -> tuple[set[str], bool]:
        """Run the model again, after its layers were permuted.

        Args:
            orders: For each permuted layer, the old input at each place, [in].

        Returns:
            The permuted layers whose inputs are not the recorded ones in their order, and whether the model's output
            has changed.
        """
        wrong = {name for name in orders if not self._inputs[name]}  # the example never reached them
        calls = {name: iter(zip(self._inputs[name], self._outputs[name], strict=True)) for name in self._layers}

        def compare(name: str, x: Tensor, output: Tensor) -> Tensor:
            recorded_input, recorded_output = next(calls[name])
            axis = -2 if isinstance(self._layers[name], nn.Conv1d) else -1  # convolutions take [..., channels, length]
            expected = recorded_input.index_select(axis, orders[name]) if name in orders else recorded_input
            if not _close(x, expected):
                wrong.add(name)
            return recorded_output.clone()

        answer = self._run(compare)
        return wrong, not all(map(_close, answer, self._answer))

    def _remember(self, name: str, x: Tensor, output: Tensor) -> None:
        self._inputs[name].append(x.clone())  # later modules may change both in place
        self._outputs[name].append(output.clone())

    def _run(self, handler: CallHandler) -> list[Tensor]:
        """Run the model with a handler on each call of a layer, and return the tensors of its output."""

        def hook(name: str) -> Callable[[nn.Module, tuple, Tensor], Tensor | None]:
            return lambda module, args, output: handler(name, args[0], output)

        handles = [module.register_forward_hook(hook(name)) for name, module in self._layers.items()]
        try:
            with eval_no_grad(self._model):
                return list(_tensors(self._model(**self._example)))
        finally:
            for handle in handles:
                handle.remove()


def _random_example(model: nn.Module) -> dict[str, Tensor]:
    """Return a random text or image, always the same. With zeros, all positions would be alike."""
    config: Any = model.config
    generator, first = torch.Generator().manual_seed(0), next(model.parameters())
    end, example = getattr(config, "eos_token_id", None), {}
    for name, empty in example_inputs(model, TOKENS).items():
        if empty.is_floating_point():
            example[name] = torch.randn(empty.shape, generator=generator).to(first)
            continue
        vocabulary = config.get_text_config().vocab_size
        ids = torch.randint(vocabulary, empty.shape, generator=generator)
        if isinstance(end, int) and end < vocabulary:
            ids[:, -1] = end  # some models classify the position of this token
        example[name] = ids.to(first.device)
    return example


def _tensors(output: Any) -> Iterator[Tensor]:
    """Yield every tensor of a model's output except its cache, which holds the reordered channels."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for name, part in output.items():
            yield from () if name == "past_key_values" else _tensors(part)
    elif isinstance(output, (tuple, list)):
        for part in output:
            yield from _tensors(part)


def _close(tensor: Tensor, expected: Tensor) -> bool:
    """Return whether two tensors are equal but for rounding."""
    tolerance = _HALF_TOLERANCE if expected.dtype in (torch.float16, torch.bfloat16) else _TOLERANCE
    tensor, expected = tensor.double(), expected.double()
    return bool((tensor - expected).norm() <= tolerance * expected.norm())
