"""The probe: one example run before and after, which proves that a change of layers has changed nothing else."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nxm_hf.layers.example_inputs import example_inputs
from nxm_hf.layers.modules import eval_no_grad, unwrap

TOKENS = 8
_ROUNDING = 1e-4  # of the norm, in float32 and above
_HALF_ROUNDING = 2e-2


class Probe:
    """What some layers of a model were given, and returned, for one example.

    `changed` runs it again, and has every layer return what it did then: so each is judged alone, and no rounding adds
    up from one to the next. What a layer then is given must be what it was given before, in the order that we expect.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, nn.Module], inputs: Mapping[str, Any] | None):
        self._model, self._layers = unwrap(model), layers
        self._given: dict[str, list[Tensor]] = {name: [] for name in layers}
        self._returned: dict[str, list[Tensor]] = {name: [] for name in layers}

        def remember(name: str, given: Tensor, returned: Tensor) -> None:
            self._given[name].append(given.clone())  # whoever comes after may write into what it is handed
            self._returned[name].append(returned.clone())

        try:
            self._inputs = _example(self._model) if inputs is None else dict(inputs)
            self._answer = self._run(remember)
        except Exception as error:  # what a model makes of an example that does not suit it can be any error
            why = str(error).strip().split("\n")[0]
            raise ValueError(
                f"{type(self._model).__name__} could not be run on an example, to see that nothing changes: {why}. "
                "Give inputs=, one batch as a dict."
            ) from error
        if any(bool(part.isnan().any()) for part in self._answer):
            raise ValueError(f"{type(self._model).__name__} answers an example with NaN. Load an earlier checkpoint.")

    def changed(self, orders: Mapping[str, Tensor]) -> tuple[set[str], bool]:
        """The layers that are given anything but their inputs in these orders, and whether the answer is another."""
        wrong = {name for name in orders if not self._given[name]}  # the example never came there
        calls = {name: iter(zip(self._given[name], self._returned[name], strict=True)) for name in self._layers}

        def compare(name: str, given: Tensor, returned: Tensor) -> Tensor:
            before, answer = next(calls[name])
            expected = before[..., orders[name]] if name in orders else before
            if not _close(given, expected):
                wrong.add(name)
            return answer.clone()

        answer = self._run(compare)
        return wrong, not all(map(_close, answer, self._answer))

    def _run(self, act: Any) -> list[Tensor]:
        """The tensors of the answer; `act` sees each call of a layer, and may return another output."""

        def hooked(name: str) -> Any:
            return lambda module, given, returned: act(name, given[0], returned)

        handles = [module.register_forward_hook(hooked(name)) for name, module in self._layers.items()]
        try:
            with eval_no_grad(self._model):
                return list(_tensors(self._model(**self._inputs)))
        finally:
            for handle in handles:
                handle.remove()


def _example(model: nn.Module) -> dict[str, Tensor]:
    """A text or an image of chance, the same every time: in one of zeros all positions would look alike."""
    chance, first = torch.Generator().manual_seed(0), next(model.parameters())
    end, found = getattr(model.config, "eos_token_id", None), {}
    for name, empty in example_inputs(model, TOKENS).items():
        if empty.is_floating_point():
            found[name] = torch.randn(empty.shape, generator=chance).to(first)
            continue
        words = model.config.get_text_config().vocab_size
        ids = torch.randint(words, empty.shape, generator=chance)
        if isinstance(end, int) and end < words:
            ids[:, -1] = end  # where some models look for their answer
        found[name] = ids.to(first.device)
    return found


def _tensors(answer: Any) -> Iterator[Tensor]:
    """Every tensor of an answer, but for a cache, which holds what is being changed."""
    if isinstance(answer, Tensor):
        yield answer
    elif isinstance(answer, Mapping):
        for name, part in answer.items():
            yield from () if name == "past_key_values" else _tensors(part)
    elif isinstance(answer, (tuple, list)):
        for part in answer:
            yield from _tensors(part)


def _close(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal but for rounding."""
    rounding = _HALF_ROUNDING if other.dtype in (torch.float16, torch.bfloat16) else _ROUNDING
    one, other = one.double(), other.double()
    return bool((one - other).norm() <= rounding * other.norm())
