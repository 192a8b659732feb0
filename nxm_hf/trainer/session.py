"""Run an engine inside a Trainer."""

import logging
import math
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from torch import nn
from transformers import TrainerCallback, TrainerState, TrainingArguments

from nxm_hf.config.config import NxMConfig
from nxm_hf.distillation.teacher import Teacher
from nxm_hf.engine.engine import Engine
from nxm_hf.engine.optimizer_state import unwrapped
from nxm_hf.engine.requirements import check_trainable
from nxm_hf.layers.plan import resolve
from nxm_hf.pruning.during_training import pruner
from nxm_hf.storage.model_card import TAG
from nxm_hf.storage.model_files import load_weights
from nxm_hf.storage.same_model import check_same_model, check_same_teacher, fingerprints
from nxm_hf.storage.saving import write_record
from nxm_hf.storage.state_file import STATE_FILE, read_header, read_state, write_state
from nxm_hf.storage.verify import verify_targets
from nxm_hf.trainer.unsupported import refuse_unsupported

logger = logging.getLogger("nxm_hf")


class Bridge(TrainerCallback):
    """Runs an engine through a Trainer's training: attach, keep its clock, finish; and writes and reads its state."""

    def __init__(self, config: NxMConfig, teacher: Teacher | None = None):
        self.config, self.teacher = config, teacher
        self.engine: Engine | None = None
        self.resume_from: str | Path | None = None

    def check(self, args: TrainingArguments, model: nn.Module) -> None:
        """Raise, before any training, for what cannot be trained."""
        refuse_unsupported(args, model)
        check_trainable(resolve(model, self.config))

    def on_train_begin(self, args, state, control, model, optimizer, train_dataloader, **kwargs):
        folder = self.state_folder(args, state)
        header, tensors = read_state(folder) if folder else (None, {})
        if self.engine is not None and not self.engine.finished:
            self.engine.release()  # an earlier training broke off: begin from what it trained, not from its masks
            if folder:
                load_weights(folder, model)  # the Trainer has, but not when it enters a training again after an OOM
        if folder:
            check_same_model(folder, header, model, self.config)
            check_same_teacher(folder, header, self.teacher and self.teacher.record)
        epoch = _steps_per_epoch(args, train_dataloader)
        prune = pruner(model, self.config, train_dataloader)
        self.engine = Engine(model, unwrapped(optimizer), self.config, state.max_steps, epoch, args.seed, prune)
        if folder:
            self.engine.restore(header, tensors)

    def state_folder(self, args: TrainingArguments, state: TrainerState) -> str | Path | None:
        """The checkpoint that this training resumes from, if it does."""
        return self.resume_from

    def on_step_begin(self, args, state, control, **kwargs):
        self.engine.step = state.global_step  # counts skipped steps too

    def on_train_end(self, args, state, control, model, **kwargs):
        self.engine.warn_if_early()
        if self._best_is_loaded(args, state):
            best = state.best_model_checkpoint
            if (Path(best) / STATE_FILE).is_file():  # save_only_model writes none
                check_same_model(best, read_header(best), model, self.config)
            self.engine.detach()  # the weights that were loaded are deployed already; finishing would undo that
        else:
            self.engine.finish()
        if self.engine.plan.targets and hasattr(model, "add_model_tags"):
            model.add_model_tags(TAG)

    def _best_is_loaded(self, args: TrainingArguments, state: TrainerState) -> bool:
        if not args.load_best_model_at_end or state.best_model_checkpoint is None:
            return False
        # A search prunes a trial from inside an evaluation, and then ends it without having loaded the best model.
        return not state.is_hyper_param_search or verify_targets(self.engine.plan.targets).ok

    def on_push_begin(self, args, state, control, **kwargs):
        # Of a checkpoint the Trainer copies only the files that it knows to what it uploads; these are the others.
        if self.engine is not None and self.engine.plan.targets and args.should_save:
            with self.deployed():
                verify_targets(self.engine.plan.targets).raise_for_problems()
                write_record(args.output_dir, self.engine.config, self.engine.plan)

    def deployed(self) -> AbstractContextManager[None]:
        """Within it, the model is what would be shipped."""
        return self.engine.deployed() if self.engine is not None else nullcontext()

    def write_state(self, args: TrainingArguments, folder: str | Path) -> None:
        """Write the state into a checkpoint; the model is deployed. Every process calls this."""
        prints = fingerprints(self.engine.model, self.engine.plan)
        if args.world_size > 1 and any(theirs != prints for theirs in gather_object([prints])):
            raise RuntimeError("The processes hold different weights; do they use the same seed?")
        if args.should_save:
            header = {**self.engine.header(), **prints, "teacher": self.teacher and self.teacher.record}
            write_state(folder, header, self.engine.tensors())


def _steps_per_epoch(args: TrainingArguments, train_dataloader: Any) -> int | None:
    try:
        return max(math.ceil(len(train_dataloader) / args.gradient_accumulation_steps), 1)
    except TypeError:  # an iterable dataset has no length
        return None
