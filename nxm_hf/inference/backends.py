"""Backends: implementations of a linear layer with a packed weight. To add one, list it in BACKENDS."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import nn

from nxm_hf.inference import cpu, cuda
from nxm_hf.inference.candidates import Candidate
from nxm_hf.inference.semi_structured import CUSPARSELT, CUTLASS
from nxm_hf.inference.sparse_linear import SparseLinear


@dataclass(frozen=True)
class Backend:
    """A way to compute a layer with a packed weight.

    Args:
        name: The name that users write.
        device_type: The type of the devices that it is for, as in `torch.device.type`.
        obstacle: Return why it cannot compute a layer that holds a pattern, or None if it can.
        build: Return a module that computes the layer, and is tuned for the numbers of tokens that are given.
    """

    name: str
    device_type: str
    obstacle: Callable[[Candidate], str | None]
    build: Callable[[Candidate, Sequence[int]], nn.Module]


def _cpu_obstacle(candidate: Candidate) -> str | None:
    assert candidate.pattern is not None
    return cpu.obstacle(*candidate.pattern, candidate.dtype)


def _build_for_cpu(candidate: Candidate, tokens: Sequence[int]) -> nn.Module:
    assert candidate.pattern is not None
    return SparseLinear(candidate.matrix(), candidate.bias, candidate.pattern).train(candidate.module.training)


_ALL = (
    Backend("cpu", "cpu", _cpu_obstacle, _build_for_cpu),
    Backend("cutlass", "cuda", partial(cuda.obstacle, CUTLASS), partial(cuda.build, CUTLASS)),
    Backend("cusparselt", "cuda", partial(cuda.obstacle, CUSPARSELT), partial(cuda.build, CUSPARSELT)),
)
BACKENDS = {backend.name: backend for backend in _ALL}


def backends_for(name: str, candidate: Candidate) -> tuple[list[Backend], str | None]:
    """Return the backends that can compute a layer.

    Args:
        name: The name of a backend, or "auto" for all of the layer's device.
        candidate: The layer.

    Returns:
        The backends, and if there are none the reason.

    Raises:
        ValueError: If there is no backend of this name.
    """
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"There is no backend {name!r}; write backend='auto', or one of {', '.join(BACKENDS)}.")
    if candidate.pattern is None:
        return [], "it holds no n:4 or n:8 pattern"
    asked = [backend for backend in BACKENDS.values() if name in ("auto", backend.name)]
    reasons = [f"no backend computes on {candidate.device.type}"]
    fitting = []
    for backend in asked:
        if backend.device_type != candidate.device.type:
            continue
        obstacle = backend.obstacle(candidate)
        if obstacle is None:
            fitting.append(backend)
        else:
            reasons.append(obstacle)
    return fitting, None if fitting else reasons[-1]
