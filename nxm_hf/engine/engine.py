"""The engine: applies a method to every weight around `optimizer.step()`, and shows the weights to deploy."""

import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from nxm_hf.config import NxMConfig, SparsityRecord
from nxm_hf.engine.deployed_view import DeployedView
from nxm_hf.engine.joint_measurements import measure_together
from nxm_hf.engine.method_of_part import method_of_part
from nxm_hf.engine.metrics import mask_movement, residual, training_metrics
from nxm_hf.engine.optimizer_state import Moments, check_moments
from nxm_hf.engine.preview import put_back, show_pruned
from nxm_hf.engine.requirements import (
    check_held,
    check_shards,
    check_state,
    check_trainable,
    warn_of_end,
    warn_of_resets_that_never_come,
    warn_of_skipped,
)
from nxm_hf.engine.sharded_state import cut, gather
from nxm_hf.engine.step_hooks import StepHooks
from nxm_hf.engine.training_view import (
    Held,
    Keeping,
    TrainingTensors,
    as_tensor,
    can_keep_and_hold,
    hold_difference,
)
from nxm_hf.engine.weight_step import weight_steps
from nxm_hf.layers.plan import Plan, Target
from nxm_hf.methods import PHASES, Method, Slot, State, restore_dense
from nxm_hf.methods.schedules import Clock
from nxm_hf.pruning.during_training import CalibratedPruner
from nxm_hf.solvers.entry_counts import EntryCounts
from nxm_hf.storage.model_record import remove_record
from nxm_hf.storage.state_file import Header, Tensors, by_layer, check_same_run, pack, unpack
from nxm_hf.storage.verify import Verification


class Engine:
    """Train the weights of a plan with a recipe, and switch between their training view and their deployed view.

    There are two views of the weights. The *training* view is what the forward pass uses during training. The
    *deployed* view is the sparse model that would be saved. All changes are made in place. Nothing is changed between
    the forward and the backward pass.

    Args:
        plan: The layers to prune.
        optimizer: The optimizer of the training, without accelerate's wrapper.
        config: What to prune and how.
        total_steps: Number of optimizer steps of the whole training.
        steps_per_epoch: Number of optimizer steps per epoch, or None if unknown.
        seed: Seed of recipes that draw random numbers.
        train_dataloader: The training data, for recipes that prune with calibration data during training.

    Raises:
        ValueError: If this model, optimizer or recipe is not supported.
    """

    def __init__(
        self,
        plan: Plan,
        optimizer: torch.optim.Optimizer,
        config: NxMConfig,
        total_steps: int,
        steps_per_epoch: int | None = None,
        seed: int = 0,
        train_dataloader: DataLoader | None = None,
    ):
        self._hooks = StepHooks(optimizer, total_steps, steps_per_epoch, self)
        self.plan, self.optimizer, self.config = plan, optimizer, config
        self.total_steps, self.seed = total_steps, seed
        if plan.shards is not None:
            check_shards(plan, config)
        check_trainable(plan)
        self._trained = plan.trained  # all targets, or none of them if the sparse model is frozen under an adapter
        check_held(plan, optimizer)
        self._pruner = CalibratedPruner.of(plan, config, train_dataloader)
        self._methods = {
            target.name: method_of_part(config.method(target.pattern), target.part) for target in self._trained
        }
        check_moments(optimizer, self._methods.values())
        warn_of_resets_that_never_come(self._methods.values(), total_steps)
        self._states: dict[str, State] = {}
        self._steps, self._dense_steps = weight_steps(optimizer, self._trained)
        self._view = DeployedView(plan, config)
        self.finished = self._warned = False
        warn_of_skipped(plan)
        self._begin()
        self._hooks.attach()

    @property
    def model(self) -> nn.Module:
        """Return the model, without wrappers such as torch.compile."""
        return self.plan.model

    # -- steps ---------------------------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """Return the number of steps done."""
        return self._hooks.step

    @step.setter
    def step(self, steps: int) -> None:
        self._hooks.step = steps

    def _begin(self) -> None:
        """Make the state of every weight, and leave in the weight what the first forward pass uses."""
        clock = self._hooks.clock()
        self._prune_if_due(clock)
        remove_record(self.plan.model, only_if_trained=True)
        for target in self._trained:
            with torch.no_grad(), self._visit(target, clock) as (method, weight, clock_of_weight):
                self._states[target.name] = method.init(weight, clock_of_weight)

    def before_step(self, clock: Clock) -> None:
        """Call `before_step` of every weight's method. `StepHooks` calls this just before the optimizer steps.

        Args:
            clock: Where training stands.
        """
        if self._view.is_shown:
            raise RuntimeError(
                "optimizer.step() inside `with engine.deployed():` would train the deployed weights. "
                "Leave the block before the next step."
            )
        self._dense_steps.forget()  # of a step that was interrupted
        self._prune_if_due(clock)
        measure_together(self.plan.shards, self._trained, self._states, partial(self._visit, clock=clock))
        for target in self._trained:
            with torch.no_grad(), self._visit(target, clock) as (method, weight, clock_of_weight):
                method.before_step(weight, self._states[target.name], clock_of_weight)
        self._dense_steps.begin()

    def after_step(self, clock: Clock) -> None:
        """Call `after_step` of every weight's method. `StepHooks` calls this just after the optimizer stepped.

        Args:
            clock: Where training stands after the step.
        """
        self._dense_steps.end()
        self._prune_if_due(clock)
        for target in self._trained:
            with torch.no_grad(), self._visit(target, clock) as (method, weight, clock_of_weight):
                method.after_step(weight, self._states[target.name], clock_of_weight)
        self._dense_steps.forget()

    def _finish_weights(self, training: dict[str, Held]) -> dict[str, EntryCounts]:
        """Call `finish` of every weight's method, so that each weight holds its pattern.

        Args:
            training: Gets what is needed to put back each weight that this changes.

        Returns:
            What was counted in the same pass, by the names of layers.
        """
        clock, keeping = self._hooks.clock(), Keeping(training)
        for target in self._trained:
            with self._visit(target, clock) as (method, weight, clock_of_weight):
                state = self._states[target.name]
                # Of a part of a weight all processes have to finish, or none.
                if target.part is None and method.is_finished(weight, state, clock_of_weight):
                    continue
                if target.part is None and can_keep_and_hold(weight):
                    kept = method.kept_at_finish(weight, state, clock_of_weight)
                    if kept is not None and keeping.keep(target.name, weight, *kept, target.pattern):
                        continue
                training[target.name] = weight.detach().clone()
                method.finish(weight, state, clock_of_weight)
                hold_difference(training, target.name, weight)
        return keeping.counts

    def _prune_if_due(self, clock: Clock) -> None:
        """Prune with calibration data if the phase that needs it begins at this step."""
        if self._pruner is None:
            return
        phase, states = self._pruner.phase, self._states
        if any(method.is_entering(phase, states.get(name), clock) for name, method in self._methods.items()):
            self._pruner.prune()
            remove_record(self.plan.model)

    def _clock_of(self, target: Target, clock: Clock) -> Clock:
        """Return the clock of one weight, with the optimizer's moments of it and a seed of its own."""
        seed = self.seed ^ zlib.crc32(target.name.encode())
        moments, weight_step = Moments(self.optimizer, target.layer), self._steps[target.name]
        return clock.but(moments=moments, seed=seed, whole=target.part, weight_step=weight_step)

    @contextmanager
    def _visit(self, target: Target, clock: Clock) -> Iterator[tuple[Method, Tensor, Clock]]:
        """Give the method, the weight and the clock of a target; name its layer and the step in every ValueError."""
        weight = target.matrix()
        try:
            yield self._methods[target.name], weight, self._clock_of(target, clock)
        except ValueError as error:
            raise ValueError(f"Layer {target.name}, step {self.step}: {error}") from error
        if weight.grad is None:  # the weight may be a view of the layer's, and a method may have dropped its gradient
            target.layer.weight.grad = None

    # -- the two views -------------------------------------------------------------------------------------------

    @property
    def is_deployed(self) -> bool:
        """Return True if the model now holds the weights that would be deployed."""
        return self.finished or self._view.is_shown

    @contextmanager
    def deployed(self, *, preview: bool = False) -> Iterator[None]:
        """Show the deployed view inside the block, and the training view after it. The block must change no weight.

        Args:
            preview: As in `deploy`.
        """
        if self.is_deployed:
            yield
            return
        try:
            self.deploy(preview)
            yield
        finally:
            self.undeploy()

    def deploy(self, preview: bool = False) -> None:
        """Put the deployed weights into the model, and the sparsity record into its config.

        Args:
            preview: If True, obey the recipe's setting `preview=True`. Every process gives the same value.
        """
        if self.is_deployed:
            return

        def change(training: dict[str, Held]) -> dict[str, EntryCounts]:
            if preview and show_pruned(self._pruner, self.phase, self._trained, training):
                return {}
            return self._finish_weights(training)

        self._view.show(change)

    def undeploy(self) -> None:
        """Go back to the training view."""
        self._view.leave()

    def finish(self) -> None:
        """End the training. The model is then an ordinary sparse model without hooks."""
        if self.finished:
            return
        self.warn_at_end()
        self.deploy(preview=True)
        self.detach()

    def warn_at_end(self) -> None:
        """Warn, once, if training ends before its last step, or ADMM before W and Z are close."""
        in_admm = any(Slot.R in state for state in self._states.values())
        if self._trained and not self._warned and (in_admm or self.step < self.total_steps):
            similarity = mask_movement(self.plan.targets, self._states)["nxm/mask_similarity"]
            lost = residual(self.trained_weights())
            self._warned = warn_of_end(self.step, self.total_steps, self.phase, lost, similarity)

    def detach(self) -> None:
        """Remove the hooks and forget the state. The weights stay as they are.

        Raises:
            ValueError: If a weight does not hold its pattern.
        """
        self._dense_steps.forget()
        self._hooks.detach()
        self._pruner, self.finished = None, True
        self._states.clear()
        self._view.keep()

    @torch.no_grad()
    def release(self) -> None:
        """Remove the hooks and put back the weights that the optimizer trained, to begin anew."""
        if self.finished:
            return
        self._dense_steps.forget()
        self.undeploy()
        for target in self._trained:
            restore_dense(target.matrix(), self._states[target.name])
        self._hooks.detach()
        self.finished = True

    def record(self, verification: Verification) -> SparsityRecord:
        """Describe the deployed model.

        Args:
            verification: What `verify_targets` found in its weights.

        Returns:
            The record to save with the model.
        """
        return self._view.record_of(verification)

    def verify_deployed(self) -> Verification:
        """Verify the deployed weights. Inside `deployed()` this is done once, unless they change."""
        return self._view.verify()

    @property
    def verification(self) -> Verification | None:
        """Return what was found in the weights that were last deployed; None before the first time."""
        return self._view.verification

    @property
    def phase(self) -> str:
        """Return the current phase: "warmup", "recipe" or "settle"."""
        return PHASES[min((int(state[Slot.PHASE]) for state in self._states.values()), default=1)]

    def trained_weights(self) -> Iterator[tuple[Target, Tensor]]:
        """Yield each target with the weight that the optimizer trains, or this process's part of it."""
        for target in self._trained:
            yield target, as_tensor(self._states[target.name].get(Slot.DENSE, self._view.training_view(target)))

    def metrics(self) -> dict[str, float]:
        """Return the metrics to log beside the loss, such as `nxm/density`; empty after the training."""
        if self.finished or not self._trained:
            return {}
        return training_metrics(self._trained, self._states, self.trained_weights(), self.phase)

    # -- state ---------------------------------------------------------------------------------------------------

    def header(self) -> Header:
        """Return the header of the state: step, seed, config and layers."""
        times = {"step": self.step, "last": self._hooks.last, "total_steps": self.total_steps, "seed": self.seed}
        return {**times, "config": self.config.to_dict(), "layers": self.plan.layers}

    def tensors(self, keep: bool = True) -> Mapping[str, Tensor]:
        """Return the training view and the state of every method, as "layer/slot" -> tensor.

        Args:
            keep: If weights are sharded, every process calls this, and those with `keep=False` get an empty dict.
        """
        self._refuse_finished()
        parts = {
            f"{target.name}/{slot}": tensor
            for target in self._trained
            for slot, tensor in {"weight": self._view.training_view(target), **self._states[target.name]}.items()
        }
        return TrainingTensors(gather(self.plan, parts, keep) | (self._view.training_biases() if keep else {}))

    def state_dict(self) -> Tensors:
        """Return all that is needed to resume bit for bit, beside the state dicts of model and optimizer.

        If weights are sharded, every process calls this, and the state can be loaded in any number of processes.
        """
        return pack(self.header(), {name: tensor.clone() for name, tensor in self.tensors().items()})

    def load_state_dict(self, state: Tensors) -> None:
        """Resume from a `state_dict()` of an engine with the same recipe, pattern and layers.

        Args:
            state: The state dict.

        Raises:
            ValueError: If the state is of another run.
        """
        header, tensors = unpack(state)
        self.restore(header, {name: cut(self.plan, name, tensor) for name, tensor in tensors.items()})

    @torch.no_grad()
    def restore(self, header: Header, tensors: Tensors) -> None:
        """Resume from a header and tensors, as `header()` and `tensors()` returned them.

        Args:
            header: The header.
            tensors: The tensors. Those of sharded weights are cut to this process's part by `cut`.

        Raises:
            ValueError: If they are of another run.
        """
        self._refuse_finished()
        check_same_run(header, self.header())
        states = by_layer(tensors)
        check_state(self._trained, states)
        self._dense_steps.forget()
        self.undeploy()
        for target in self._trained:
            weight, state = target.matrix(), states[target.name]
            put_back(target, state.pop("weight"), state.pop("bias", None))  # a bias is there only after a preview
            # Counters stay on the CPU, where they are read; tensors of the weight's shape go to the weight's device.
            self._states[target.name] = {k: (v.to(weight.device) if v.ndim else v).clone() for k, v in state.items()}
        self._hooks.step, self._hooks.last, self.seed = header["step"], header["last"], header["seed"]

    def _refuse_finished(self) -> None:
        if self.finished:
            raise RuntimeError("This training is finished and has no state any more; attach() begins another.")
