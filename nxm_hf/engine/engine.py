"""The engine: carries methods through a training, around `optimizer.step()`, and shows the weights to ship."""

import logging
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nxm_hf.config.config import NxMConfig
from nxm_hf.engine.metrics import residual, training_metrics
from nxm_hf.engine.optimizer_state import Moments, check_moments
from nxm_hf.engine.requirements import check_held, check_pruned, check_trainable
from nxm_hf.engine.step_hooks import Bracket
from nxm_hf.layers.plan import Target, resolve
from nxm_hf.methods import PHASES, State, restore_dense
from nxm_hf.methods.schedules import Clock
from nxm_hf.storage.model_record import put_stamp, remove_stamp
from nxm_hf.storage.state_file import Header, Tensors, by_layer, check_same_run, pack, unpack
from nxm_hf.storage.verify import verify_targets

logger = logging.getLogger("nxm_hf")


class Engine:
    """Two views of the weights: *training*, what the forward pass uses, and *deployed*, what would be shipped.

    Methods act in a `Bracket` around the optimizer's step. All edits are in place; nothing is touched between forward
    and backward.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: NxMConfig,
        total_steps: int,
        steps_per_epoch: int | None = None,
        seed: int = 0,
        prune: Callable[[], None] | None = None,
    ):
        self._bracket = Bracket(optimizer, total_steps, steps_per_epoch, self._at_step)
        self.model, self.optimizer, self.config = model, optimizer, replace(config)
        self.total_steps, self.seed, self._prune = total_steps, seed, prune
        self.plan = resolve(model, config)
        check_trainable(self.plan)
        check_held(self.plan, optimizer)
        check_pruned(self.plan, config, prune)
        self._methods = {target.name: config.method(target.pattern) for target in self.plan.targets}
        check_moments(optimizer, self._methods.values())
        self._states: dict[str, State] = {}
        self._training: dict[str, Tensor] | None = None  # the training view, while the deployed one is shown
        self.finished = self._warned = False
        if self.plan.skipped:
            logger.warning("Left dense: %s.", self.plan.reasons)
        self._prune_if_due(self._bracket.clock())
        remove_stamp(self.model)
        self._each(self._begin)
        self._bracket.close()

    # -- steps ---------------------------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """Steps done."""
        return self._bracket.step

    @step.setter
    def step(self, steps: int) -> None:
        self._bracket.step = steps

    def _begin(self, target: Target, weight: Tensor) -> None:
        clock = self._own(self._bracket.clock(), target)
        self._states[target.name] = self._methods[target.name].init(weight, clock)

    def _at_step(self, verb: str, clock: Clock) -> None:
        if self._training is not None:
            raise RuntimeError("optimizer.step() inside `with engine.deployed():` would train the weights to ship.")
        self._prune_if_due(clock)
        self._each(partial(self._act, verb, clock))

    def _prune_if_due(self, clock: Clock) -> None:
        """Where the phase begins now that goes on from weights made by a method of `prune`, have them made."""
        phase = None if self._prune is None else self.config.calibrated_start.phase
        if phase and any(
            method.is_entering(phase, self._states.get(name), clock) for name, method in self._methods.items()
        ):
            self._prune()
            remove_stamp(self.model)

    def _act(self, verb: str, clock: Clock, target: Target, weight: Tensor) -> None:
        state, clock = self._states[target.name], self._own(clock, target)
        getattr(self._methods[target.name], verb)(weight, state, clock)
        if weight.grad is None:
            target.layer.weight.grad = None  # a method may pass over a step; a view's gradient is not the weight's

    def _own(self, clock: Clock, target: Target) -> Clock:
        """The clock of one weight: with what the optimizer remembers of it, and a seed of its own."""
        seed = self.seed ^ zlib.crc32(target.name.encode())
        return replace(clock, moments=Moments(self.optimizer, target.layer), seed=seed)

    @torch.no_grad()
    def _each(self, act: Callable[[Target, Tensor], Any]) -> None:
        """Do something to every target; an error says which layer and step it is about."""
        for target in self.plan.targets:
            try:
                act(target, target.matrix())
            except ValueError as error:
                raise ValueError(f"Layer {target.name}, step {self.step}: {error}") from error

    # -- the two views -------------------------------------------------------------------------------------------

    @property
    def is_deployed(self) -> bool:
        """Whether the model now holds the weights that would be shipped."""
        return self.finished or self._training is not None

    @contextmanager
    def deployed(self) -> Iterator[None]:
        """Within it, the model is what would be shipped; after it, training goes on where it was."""
        if self.is_deployed:
            yield
            return
        self.deploy()
        try:
            yield
        finally:
            self.undeploy()

    @torch.no_grad()
    def deploy(self) -> None:
        """Show the weights that would be shipped, and stamp the model's config with what they are."""
        if self.is_deployed:
            return
        self._training = {target.name: target.matrix().detach().clone() for target in self.plan.targets}
        try:
            self._each(partial(self._act, "finish", self._bracket.clock()))
        except BaseException:
            self.undeploy()
            raise
        self._stamp()

    def undeploy(self) -> None:
        """Go back to the training view."""
        if self._training is not None:
            self._each(lambda target, weight: weight.copy_(self._training[target.name]))
            self._training = None
            remove_stamp(self.model)

    def finish(self) -> None:
        """End the training: from here on the model is an ordinary sparse model, and nothing is hooked any more."""
        if self.finished:
            return
        self.warn_if_early()
        self.deploy()
        self.detach()

    def warn_if_early(self) -> None:
        """Say, once, in what phase a training ends before its last step, and what pruning takes there."""
        if self.plan.targets and self.step < self.total_steps and not self._warned:
            self._warned = True
            logger.warning(
                "Training ends at step %d of %d, in the phase %r; pruning now takes %.4f of the norm of the weights.",
                *(self.step, self.total_steps, self.phase, residual(self.trained_weights())),
            )

    def detach(self) -> None:
        """Unhook and forget the state; the weights stay as they are, must hold their pattern, and are stamped."""
        self._bracket.open()
        self._training, self.finished = None, True
        self._states.clear()
        if self.plan.targets:
            verify_targets(self.plan.targets).raise_for_problems()
            self._stamp()

    def release(self) -> None:
        """Unhook, and give back the weights that the optimizer trained, as if no mask had been: to begin anew."""
        if self.finished:
            return
        self.undeploy()
        self._each(lambda target, weight: restore_dense(weight, self._states[target.name]))
        self._bracket.open()
        self.finished = True

    def _stamp(self) -> None:
        self.config.layers, self.config.density = self.plan.layers, verify_targets(self.plan.targets).density
        if self.plan.targets:
            put_stamp(self.model, self.config)

    # -- looking -------------------------------------------------------------------------------------------------

    @property
    def phase(self) -> str:
        """Where the run is: warmup, recipe or settle."""
        return PHASES[min((int(state["phase"]) for state in self._states.values()), default=1)]

    def trained_weights(self) -> Iterator[tuple[Target, Tensor]]:
        """Each target with what the optimizer trains."""
        for target in self.plan.targets:
            yield target, self._states[target.name].get("dense", self._trained(target))

    def _trained(self, target: Target) -> Tensor:
        """The weight in the training view."""
        return target.matrix().detach() if self._training is None else self._training[target.name]

    def metrics(self) -> dict[str, float]:
        """What is logged beside the loss."""
        if self.finished or not self.plan.targets:
            return {}
        return training_metrics(self.plan.targets, self._states, self.trained_weights(), self.phase)

    # -- state ---------------------------------------------------------------------------------------------------

    def header(self) -> Header:
        """What the state says of itself."""
        times = {"step": self.step, "last": self._bracket.last, "total_steps": self.total_steps, "seed": self.seed}
        return {**times, "config": self.config.to_dict(), "layers": self.plan.layers}

    def tensors(self) -> Tensors:
        """What the model computes with, and the state of every method, by layer."""
        self._refuse_finished()
        slots = {t.name: {"weight": self._trained(t), **self._states[t.name]} for t in self.plan.targets}
        return {f"{name}/{slot}": tensor for name, state in slots.items() for slot, tensor in state.items()}

    def state_dict(self) -> Tensors:
        """All that is needed to go on bit for bit, beside the model's and the optimizer's own state dicts."""
        return {name: tensor.clone() for name, tensor in pack(self.header(), self.tensors()).items()}

    def load_state_dict(self, state: Tensors) -> None:
        """Go on from a `state_dict()` of an engine with the same recipe, pattern and layers."""
        self.restore(*unpack(state))

    @torch.no_grad()
    def restore(self, header: Header, tensors: Tensors) -> None:
        """Take over a header and tensors, if they are of such a run."""
        self._refuse_finished()
        check_same_run(header, self.header())
        self.undeploy()
        states = by_layer(tensors)
        for target in self.plan.targets:
            weight, state = target.matrix(), states[target.name]
            weight.copy_(state.pop("weight"))
            # Counts stay where they are read, on the CPU; what has the weight's shape goes to the weight's device.
            self._states[target.name] = {k: (v.to(weight.device) if v.ndim else v).clone() for k, v in state.items()}
        self._bracket.step, self._bracket.last, self.seed = header["step"], header["last"], header["seed"]

    def _refuse_finished(self) -> None:
        if self.finished:
            raise RuntimeError("This training is finished and has no state any more; attach() begins another.")
