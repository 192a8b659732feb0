"""The bridge to the Hugging Face loop: NxMCallback for any Trainer, and AnalysisCallback beside it."""

from pathlib import Path

from transformers import TrainerControl, TrainerState, TrainingArguments

from nxm_hf.config.config import NxMConfig
from nxm_hf.methods import Method
from nxm_hf.storage.checkpoints import begin_checkpoint, drop_unsaved
from nxm_hf.storage.saving import write_record
from nxm_hf.storage.state_file import STATE_FILE
from nxm_hf.trainer.session import Bridge


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
        super().__init__(NxMConfig.from_any(sparsity))
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
