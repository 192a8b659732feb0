"""The interface of a method: what happens to one weight just before and just after each optimizer step."""

from abc import ABC, abstractmethod
from collections.abc import Generator

import torch
from torch import Tensor

from nxm_hf.methods.schedules import Clock
from nxm_hf.patterns import Pattern

State = dict[str, Tensor]
Measurement = Generator[Tensor, Tensor, None]  # yields numbers of this process, and is sent those of all added up


class Slot:
    """The names of the tensors in a `State`. Checkpoints hold them, so their values never change."""

    DENSE = "dense"  # the weight that the optimizer trains, if the model computes with another one
    MASK = "mask"  # the mask in use, True = kept
    MASK_CHANGE = "moved"  # how the mask changed when it was last solved: came in, left, kept before
    PHASE = "phase"  # the index of the phase in `PHASES`
    R = "r"  # ADMM: R = Z - U, the sparse weight less the dual variable
    UPDATES = "updates"  # ADMM: the number of updates done
    RHO = "rho"  # ADMM: the measured strength of the penalty, 0 until it is measured
    GROWTH = "growth"  # ADMM: the factor of the strength since the last update, if it grows
    DUAL = "u"  # ADMM: the dual variable, if it is damped
    GRADIENT = "gradient"  # ADMM: the mean gradient, from which the strength is measured
    GRADIENTS = "gradients"  # ADMM: the number of gradients in that mean


NO_CHANGE = torch.tensor([0, 0, 1])  # the mask change before there is a second mask; the 1 keeps ratios finite
VERBS = ("init", "before_step", "after_step", "finish")


class Method(ABC):
    """Sparse training of one weight, as four verbs around `optimizer.step()`.

    A weight has the shape [out, in]. Between two optimizer steps `weight` is the weight that the model computes with.
    During an optimizer step it is the weight that the optimizer trains, unless the method has the optimizer train one
    of its own (`Clock.weight_step`). All that a method remembers is in its `State`, a dict of tensors named by `Slot`,
    so that it saves and loads with the checkpoint.

    The clock counts steps done: `before_step` at step t, then `after_step` at step t + 1. Verbs run without autograd.
    An object with the four verbs is a method; it does not have to inherit from this class.
    """

    @property
    def edits_moments(self) -> bool:
        """Return True if the method sets the optimizer's moments of single entries to zero."""
        return False

    @classmethod
    def __subclasshook__(cls, other: type) -> bool:
        if cls is Method and all(callable(getattr(other, verb, None)) for verb in VERBS):
            return True
        return NotImplemented

    @abstractmethod
    def init(self, weight: Tensor, clock: Clock) -> State:
        """Begin training a weight, and leave in it the values for the first forward pass.

        Args:
            weight: The dense weight; edited in place.
            clock: The clock at the first step of the method.

        Returns:
            The state of the method for this weight.
        """

    def measure(self, weight: Tensor, state: State, clock: Clock) -> Measurement:
        """Yield numbers to add up over all processes, before `before_step`, if the weight is sharded.

        The engine calls this for the parts of sharded weights only. For a whole weight, `before_step` measures by
        itself. The engine takes one yield of each weight, and adds them all up in one exchange. Every process must
        yield equally often.

        Args:
            weight: The part of the weight, with its gradient; it is not edited.
            state: The state of the method; edited in place.
            clock: The clock that `before_step` gets, too.

        Yields:
            Numbers of this process, in one dimension. Their sums over the processes are sent back, as doubles.
        """
        yield from ()

    @abstractmethod
    def before_step(self, weight: Tensor, state: State, clock: Clock) -> None:
        """Edit the weight and its gradient in place, just before the optimizer steps.

        Args:
            weight: The weight that the model computed with; `weight.grad` is None if it has no gradient.
            state: The state of the method; edited in place.
            clock: The clock at the steps done before this one.
        """

    @abstractmethod
    def after_step(self, weight: Tensor, state: State, clock: Clock) -> None:
        """Edit the weight and the state in place, just after the optimizer stepped.

        Args:
            weight: The weight that the optimizer trained.
            state: The state of the method; edited in place.
            clock: The clock at the steps done, this one included.
        """

    def is_finished(self, weight: Tensor, state: State, clock: Clock) -> bool:
        """Return True if `finish` would change no bit of the weight. Where that is not known, return False.

        The engine asks this only of a class that defines it together with `finish`.

        Args:
            weight: The weight that the model computes with.
            state: The state of the method.
            clock: The clock at the steps done.
        """
        return False

    def kept_at_finish(self, weight: Tensor, state: State, clock: Clock) -> tuple[Tensor, Tensor | Pattern] | None:
        """Return a tensor and a mask if `finish` would write that tensor's kept entries, and +0.0 elsewhere.

        Then the engine may do so in place of `finish`, in one pass with what it does to go back. Nothing is edited. A
        subclass that overrides `finish` alone is finished by that.

        Args:
            weight: The weight that the model computes with.
            state: The state of the method.
            clock: The clock at the steps done.

        Returns:
            A tensor like the weight, and the mask; or None if `finish` does something else. In place of the mask there
            may be a pattern, whose mask of the largest entries of that tensor is meant.
        """
        return None

    @abstractmethod
    def finish(self, weight: Tensor, state: State, clock: Clock) -> Tensor | None:
        """Write a weight that holds the pattern into `weight`, and leave the state unchanged.

        Args:
            weight: The weight that the model computes with; edited in place.
            state: The state of the method; only read, because training may go on afterwards.
            clock: The clock at the steps done.

        Returns:
            The mask that was used, or None if the method does not tell it.
        """


def measure_alone(measurement: Measurement) -> None:
    """Run a measurement in one process: its own numbers are the sums.

    Args:
        measurement: What `Method.measure` has returned.
    """
    numbers = advance(measurement)
    while numbers is not None:
        numbers = advance(measurement, numbers)


def advance(measurement: Measurement, sums: Tensor | None = None) -> Tensor | None:
    """Return what a measurement yields next, or None at its end.

    Args:
        measurement: The measurement.
        sums: The sums of what it has yielded last; None at its beginning.
    """
    try:
        return next(measurement) if sums is None else measurement.send(sums)
    except StopIteration:
        return None


def restore_dense(weight: Tensor, state: State) -> None:
    """Copy the weight that the optimizer trains back into `weight`.

    Args:
        weight: The weight that the model computes with; edited in place.
        state: The state of its method. If it holds no dense weight, nothing changes.
    """
    if Slot.DENSE in state:
        weight.copy_(state[Slot.DENSE])
