"""The bridge to the Hugging Face loop: NxMCallback for any Trainer, and AnalysisCallback beside it."""

import logging
import math
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from nxm_hf import sampling
from nxm_hf.checkpoints import begin_checkpoint, drop_unsaved
from nxm_hf.config import NxMConfig
from nxm_hf.directories import load_weights
from nxm_hf.engine import Engine
from nxm_hf.identity import check_same_model, check_same_teacher, fingerprints
from nxm_hf.loops import engine_of
from nxm_hf.methods import Method
from nxm_hf.optimizers import unwrapped
from nxm_hf.pruning.beginning import pruner
from nxm_hf.refusals import refuse_unsupported
from nxm_hf.shipping import TAG, write_record
from nxm_hf.state import STATE_FILE, read_header, read_state, write_state
from nxm_hf.targets import check_trainable, resolve
from nxm_hf.teachers import Teacher
from nxm_hf.verification import verify_targets

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
            check_same_teacher(folder, header, self.teacher and self.teacher.words)
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
            header = {**self.engine.header(), **prints, "teacher": self.teacher and self.teacher.words}
            write_state(folder, header, self.engine.tensors())


class NxMCallback(Bridge):
    """Makes any `transformers.Trainer` sparse: `Trainer(..., callbacks=[NxMCallback("admm")])`.

    It deploys before a save or an evaluation that `control` asks for, and goes back before the next step. Put it last
    among the callbacks, so that it sees what they ask for. After an interrupt, save inside `with callback.deployed():`.
    It leaves the Trainer's loss as it is: `fix_loss_scale` is NxMTrainer's.

    Args:
        sparsity: an `NxMConfig`, the name of a recipe, or a dict.
        resume_from: the checkpoint to resume from, when it is not `output_dir/checkpoint-{global_step}`.
    """

    def __init__(self, sparsity: NxMConfig | str | dict | Method, resume_from: str | Path | None = None):
        super().__init__(NxMConfig.of(sparsity))
        self.resume_from = resume_from
        self._unsaved: Path | None = None  # a checkpoint that was begun, until the Trainer says that it has saved it

    def on_init_end(self, args, state, control, model, **kwargs):
        self.check(args, model)

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_hyper_param_search:
            raise ValueError("NxMCallback cannot take part in a hyperparameter search; use NxMTrainer, which can.")
        self.check(args, kwargs["model"])  # a callback that was added later has not seen the Trainer being made
        super().on_train_begin(args, state, control, **kwargs)
        if args.eval_on_start:
            self.engine.deploy()

    def state_folder(self, args, state):
        if state.global_step == 0 or self.config.is_dense:
            return None
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if (folder / STATE_FILE).is_file():
            return folder
        if self.resume_from is None:
            raise FileNotFoundError(
                f"{folder} has no {STATE_FILE}. Is the checkpoint elsewhere? Write NxMCallback(..., resume_from=PATH). "
                "Did a plain Trainer or save_only_model=True write it? Load its weights with from_pretrained and train "
                "anew."
            )
        return self.resume_from

    def on_step_begin(self, args, state, control, **kwargs):
        self._drop_unsaved()
        self.engine.undeploy()
        super().on_step_begin(args, state, control, **kwargs)

    def on_step_end(self, args, state, control, **kwargs):
        self._prepare(args, state, control)

    def on_epoch_end(self, args, state, control, **kwargs):
        self._prepare(args, state, control)
        if control.should_training_stop:
            self.engine.deploy()  # whoever looks at the model from here on sees what is shipped

    def _prepare(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        """Deploy for what is asked for, and write the state before the Trainer rotates checkpoints."""
        save = control.should_save or (args.save_strategy == "best" and control.should_evaluate)
        if not (save or control.should_evaluate) or not self.engine.plan.targets:
            return
        self.engine.deploy()
        if save:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            if args.should_save:
                self._unsaved = folder
                begin_checkpoint(folder)
                write_record(folder, self.engine.config, self.engine.plan)
            if not args.save_only_model:
                self.write_state(args, folder)

    def _drop_unsaved(self) -> None:
        # With save_strategy="best" only the evaluation, which comes after us, decides whether there is a save.
        if self._unsaved is not None:
            drop_unsaved(self._unsaved)
            self._unsaved = None

    def on_train_end(self, args, state, control, model, **kwargs):
        self._drop_unsaved()
        super().on_train_end(args, state, control, model, **kwargs)

    def on_save(self, args, state, control, **kwargs):
        self._unsaved = None
        if self.engine.plan.targets and not self.engine.is_deployed:
            raise RuntimeError(
                f"checkpoint-{state.global_step} was saved with dense weights: another callback asked for it after "
                "NxMCallback had looked. Put NxMCallback last in callbacks=[...]."
            )

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs is not None and "loss" in logs and self.engine is not None:
            metrics = self.engine.metrics()
            logs.update(metrics)
            state.log_history[-1].update(metrics)


class AnalysisCallback(TrainerCallback):
    """Writes `nxm_analysis.json` into `output_dir`, with what `nxm report` draws beside the Trainer's own log.

    It looks when training begins, at each logging step, and at the last step. Add it to an NxMTrainer, or to any
    Trainer that has an NxMCallback: `callbacks=[AnalysisCallback(), NxMCallback("admm")]`. The training is, bit for
    bit, what it is without it. A resumed training goes on with the file of the one before.
    """

    def __init__(self):
        self._engine: Engine | None = None
        self._begun = False
        self._words: sampling.Words = {}

    def on_train_begin(self, args, state, control, **kwargs):
        self._engine, self._begun = None, False

    def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
        if self._begun:  # not in on_train_begin: NxMCallback may stand later in the list, and make its engine then
            return
        self._begun = True
        engine = engine_of(optimizer)
        if engine is None or not engine.plan.targets:
            logger.warning("AnalysisCallback writes nothing: this training makes no layer sparse.")
        elif state.is_world_process_zero:
            self._engine = engine
            self._words = sampling.opened(args.output_dir, state.global_step, engine, args.seed)
            if not self._words["records"]:
                self._look(args, state)

    def on_log(self, args, state, control, logs=None, **kwargs):
        watching = self._engine is not None and not self._engine.finished
        if watching and "loss" in (logs or {}) and sampling.is_due(self._words, state.global_step):
            self._look(args, state)

    def on_step_end(self, args, state, control, **kwargs):
        if control.should_training_stop and self._engine is not None:
            self._look(args, state)

    def _look(self, args: TrainingArguments, state: TrainerState) -> None:
        sampling.record(self._words, self._engine, state.global_step, args.output_dir)


def _steps_per_epoch(args: TrainingArguments, train_dataloader: Any) -> int | None:
    try:
        return max(math.ceil(len(train_dataloader) / args.gradient_accumulation_steps), 1)
    except TypeError:  # an iterable dataset has no length
        return None
