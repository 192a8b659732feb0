"""The engine: apply a method to every weight around `optimizer.step()`."""

from nxm_hf.engine.attach import attach
from nxm_hf.engine.engine import Engine

__all__ = ["Engine", "attach"]
