"""Whole checkpoints: read back every model that Trainer saves, and with sharded weights write those of one process."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from nxm_hf.adapters.loading import restore_adapter
from nxm_hf.engine.moments_to_save import moments_to_save
from nxm_hf.engine.optimizer_state import unwrapped
from nxm_hf.engine.sharded_state import cut_optimizer, gather_optimizer
from nxm_hf.layers.modules import has_adapter, plain_name, without_wrappers
from nxm_hf.storage.restoring import load_weights, needs_conversion
from nxm_hf.storage.saving import bytes_of
from nxm_hf.storage.write_errors import explained
from nxm_hf.trainer.unsupported import is_fsdp


def share_tied(model: nn.Module, state_dict: dict[str, Any]) -> None:
    """Give all names of a tied weight the same tensor in a state dict, in place, as they have in one process.

    Args:
        model: The model.
        state_dict: Its state dict with whole weights.
    """
    first: dict[int, str] = {}
    for name, parameter in without_wrappers(model).named_parameters(remove_duplicate=False):
        name = plain_name(name)
        known = first.setdefault(id(parameter), name)
        if known != name and known in state_dict and name in state_dict:
            state_dict[name] = state_dict[known]


class WholeCheckpoints(Trainer):
    """Restore models that transformers saves under other names than they have in memory, such as ViT and Mixtral.

    Trainer looks for the names in memory, and goes on with the weights that the model has where it finds none. Under
    FSDP2, write `model.safetensors` and `optimizer.pt` too, and load checkpoints of any number of processes. Trainer
    writes `pytorch_model_fsdp.bin` and `optimizer.bin` there, with weights that are not the deployed ones; with
    `SHARDED_STATE_DICT` it writes no model at all.
    """

    @property
    def _is_sharded(self) -> bool:
        """Return True if weights are sharded, and the training is not simply Trainer's."""
        return is_fsdp() and not self.sparsity.is_dense  # type: ignore[attr-defined]  # of NxMTrainer

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model as Trainer does, whole also with `SHARDED_STATE_DICT`.

        Args:
            output_dir: As in Trainer.
            _internal_call: As in Trainer.
        """
        if self._is_sharded:
            self.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
        super().save_model(output_dir, _internal_call=_internal_call)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save a checkpoint as Trainer does. An error of the disk says which file it was, and how to go on."""
        if self.model is None or self.sparsity.is_dense:  # type: ignore[attr-defined]
            return super()._save_checkpoint(model, trial)
        folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        needed = 4 * bytes_of(self.model)  # the model, the state of the recipe and two moments
        with explained(folder, needed, folder, left="is not complete, and resume_from_checkpoint=True passes over it"):
            super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save the model as Trainer does. A tied weight is gathered once for each of its names, and written once."""
        if state_dict is not None and self._is_sharded and self.model is not None:
            share_tied(self.model, state_dict)
        super()._save(output_dir, state_dict=state_dict)

    def _restores(self, folder: str) -> bool:
        """Return True if Trainer would not find the weights of this model in a checkpoint."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled or self.model is None:
            return self._is_sharded
        return needs_conversion(folder, self.model)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if not self._restores(resume_from_checkpoint):
            others = () if model is None else (model,)  # the Trainers of sentence-transformers take no model
            return super()._load_from_checkpoint(resume_from_checkpoint, *others)
        self._restore(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        if best is None or not self._restores(best):
            return super()._load_best_model()
        self._restore(best)

    def _restore(self, folder: str) -> None:
        assert self.model is not None
        if has_adapter(self.model):
            restore_adapter(folder, self.model)
        else:
            load_weights(folder, without_wrappers(self.model))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self._is_sharded:
            with moments_to_save(self.optimizer):
                return super()._save_optimizer_and_scheduler(output_dir)
        assert self.optimizer is not None  # a training has one
        optimizer = unwrapped(self.optimizer)
        whole = gather_optimizer(optimizer, keep=self.args.should_save)
        handle = optimizer.register_state_dict_post_hook(lambda _optimizer, _state: whole)
        try:
            with self._as_in_one_process():
                super()._save_optimizer_and_scheduler(output_dir)
        finally:
            handle.remove()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self._is_sharded:
            return super()._load_optimizer_and_scheduler(checkpoint)
        with self._as_in_one_process():
            super()._load_optimizer_and_scheduler(checkpoint)
        assert self.optimizer is not None
        cut_optimizer(unwrapped(self.optimizer))

    @contextmanager
    def _as_in_one_process(self) -> Iterator[None]:
        """Have Trainer choose the files of a training that is not sharded."""
        self.is_fsdp_enabled: Any = False
        try:
            yield
        finally:
            self.is_fsdp_enabled = True
