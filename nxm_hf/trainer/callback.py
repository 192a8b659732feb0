"""NxMCallback: sparse training in any Trainer."""

from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from nxm_hf.config import NxMConfig
from nxm_hf.config.misplaced import refuse_misplaced
from nxm_hf.engine import Engine
from nxm_hf.methods import Method
from nxm_hf.storage.checkpoints import begin_checkpoint, drop_unsaved, missing_parts
from nxm_hf.storage.restoring import restore_converted
from nxm_hf.storage.saving import write_record
from nxm_hf.storage.state_file import STATE_FILE
from nxm_hf.trainer.checkpoint_manifest import RANDOM_STATES, add_random_states
from nxm_hf.trainer.host_trainer import CardHook, EarlyCallback, find_trainer, hide_parameters
from nxm_hf.trainer.save_hook import SaveHook
from nxm_hf.trainer.session import SparseTrainingSession
from nxm_hf.trainer.unsupported import is_fsdp


class NxMCallback(TrainerCallback):
    """Make any `transformers.Trainer` sparse: `Trainer(..., callbacks=[NxMCallback("admm")])`.

    The callback deploys the weights for every save and evaluation that `control` requests, and goes back before the
    next step. Put it last among the callbacks, so that their requests are included. After an interrupt, save inside
    `with callback.deployed():`. The Trainer's loss stays as it is; `fix_loss_scale` belongs to NxMTrainer. The Trainers
    of sentence-transformers and of SetFit take it too.

    Args:
        sparsity: An `NxMConfig`, the name of a recipe, a pattern, a dict, JSON, the path of a JSON or YAML file, or a
            method object.
        resume_from: The checkpoint to resume from, if it is neither `output_dir/checkpoint-{global_step}` nor
            `args.resume_from_checkpoint`.
        **unknown: No argument has another name. One that is given raises a TypeError that says what to write.

    Raises:
        TypeError: If no sparsity is given, or an argument has another name.
        ValueError: If the config is wrong, or, when the Trainer is made, if the training is not supported.
    """

    def __init__(
        self,
        sparsity: NxMConfig | str | Path | dict[str, Any] | Method | None = None,
        resume_from: str | Path | None = None,
        **unknown: Any,
    ):
        refuse_misplaced("NxMCallback", unknown, sparsity, "sparsity and resume_from", "NxMCallback({})")
        if sparsity is None:  # callbacks=[NxMCallback]: the Trainer makes the object, and has no arguments for it
            raise TypeError('NxMCallback needs a sparsity. Write callbacks=[NxMCallback("admm")].')
        self._session = SparseTrainingSession(NxMConfig.from_any(sparsity))
        self.resume_from = resume_from
        self._unsaved: Path | None = None  # a checkpoint that was begun, until Trainer reports that it is saved

    @property
    def config(self) -> NxMConfig:
        """Return the config of the training."""
        return self._session.config

    @property
    def engine(self) -> Engine | None:
        """Return the engine of the last training, or None before the first."""
        return self._session.engine

    def deployed(self) -> AbstractContextManager[None]:
        """Return a context in which the model holds its deployed weights."""
        return self._session.deployed()

    # -- events of the Trainer -----------------------------------------------------------------------------------

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._join_trainer()
        self._session.check(*_trained(args, kwargs))
        if is_fsdp():  # with another type, Trainer would save no model that can be deployed
            plugin = AcceleratorState().fsdp_plugin
            plugin.state_dict_config = plugin.optim_state_dict_config = None  # of the type before
            plugin.set_state_dict_type("FULL_STATE_DICT")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_hyper_param_search:
            raise ValueError("NxMCallback does not support hyper-parameter search; use NxMTrainer, which does.")
        args, model = _trained(args, kwargs)
        self._join_trainer()  # again: add_callback() gives no other event
        resume_from = self._state_folder(args, state)
        if resume_from is not None:
            restore_converted(resume_from, model)
        engine = self._session.begin(
            args,
            state,
            model,
            kwargs["optimizer"],
            kwargs.get("train_dataloader"),
            resume_from,
            left_out=RANDOM_STATES if args.world_size > 1 else "",  # until all processes have reported the save
        )
        if engine.plan.targets and args.should_save:
            # One process saves, which cannot verify sharded weights. They were verified when they were deployed.
            found = None if engine.plan.shards is None else lambda: engine.verification
            facts = partial(self._session.card_facts, engine.model)
            SaveHook(kwargs["model"], engine.model, facts, found, engine.plan).attach()
        if args.eval_on_start:
            engine.deploy(preview=True)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._drop_unsaved()
        engine = self._session.started_engine()
        hide_parameters(engine.model)
        engine.undeploy()
        engine.step = state.global_step  # counts skipped steps too

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._prepare(_trained(args, kwargs)[0], state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._prepare(_trained(args, kwargs)[0], state, control)
        if control.should_training_stop:
            self._session.started_engine().deploy(preview=True)  # later callbacks see the deployed weights

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        self._session.evaluations.add(state, metrics, getattr(kwargs.get("eval_dataloader"), "dataset", None))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._drop_unsaved()
        args, model = _trained(args, kwargs)
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            restore_converted(state.best_model_checkpoint, model)
        self._session.end(args, state, model)

    def on_push_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._session.prepare_push(_trained(args, kwargs)[0])

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._unsaved = None
        engine = self._session.started_engine()
        args, _ = _trained(args, kwargs)
        if args.world_size > 1 and engine.plan.targets:
            add_random_states(args, _checkpoint(args, state))
        if engine.plan.targets and not engine.is_deployed:
            raise RuntimeError(
                f"checkpoint-{state.global_step} was saved with dense weights: another callback asked for it after "
                "NxMCallback had run. Put NxMCallback last in callbacks=[...]."
            )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs is not None and "loss" in logs and self.engine is not None:
            metrics = {key: logs[key] for key in logs if key.startswith("nxm/")} or self._metrics()
            logs.update(metrics)  # without EarlyCallback, trackers have reported already
            state.log_history[-1].update(metrics)

    def _metrics(self) -> dict[str, float]:
        return {} if self.engine is None else self.engine.metrics()

    def _join_trainer(self) -> None:
        """Connect to the trackers and the card of the Trainer. Another loop with callbacks has neither."""
        if (trainer := find_trainer()) is not None:
            callbacks = trainer.callback_handler.callbacks
            if sum(isinstance(callback, NxMCallback) for callback in callbacks) > 1:
                raise ValueError("This Trainer has two NxMCallbacks, and one trains all layers. Leave the other out.")
            EarlyCallback(self, trainer.callback_handler, lambda: self.config, self._metrics).attach()
            CardHook(trainer, lambda: self._session.write_card(trainer.args)).attach()

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def _state_folder(self, args: TrainingArguments, state: TrainerState) -> str | Path | None:
        """Return the checkpoint that this training resumes from, or None."""
        if state.global_step == 0 or self.config.is_dense:
            return None
        own = _checkpoint(args, state)
        # Scripts pass this argument on to `train`, which does not tell callbacks where it resumes from.
        places = (own, args.resume_from_checkpoint)
        found = [path for path in places if path is not None and (Path(path) / STATE_FILE).is_file()]
        folder: str | Path
        if self.resume_from is not None and own not in found:
            folder = self.resume_from
        elif found:
            folder = found[0]
        else:
            raise FileNotFoundError(
                f"{own} has no {STATE_FILE}. Is the checkpoint elsewhere? Write NxMCallback(..., resume_from=PATH). "
                "Did a plain Trainer or save_only_model=True write it? Load its weights with from_pretrained and train "
                "anew."
            )
        if missing := missing_parts(folder, by_fsdp=is_fsdp()):
            raise ValueError(f"{folder} cannot be resumed from: {'; '.join(missing)}. Resume from an older checkpoint.")
        return folder

    def _prepare(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        """Deploy for the save or evaluation that is asked for, and write the state before checkpoints are rotated."""
        engine = self._session.started_engine()
        save = control.should_save or (args.save_strategy == "best" and control.should_evaluate)
        if not (save or control.should_evaluate) or not engine.plan.targets:
            return
        engine.deploy(preview=True)
        if save:
            folder = _checkpoint(args, state)
            if args.should_save:
                self._unsaved = folder
                begin_checkpoint(folder)
                found = engine.verification
                assert found is not None  # the weights were just deployed
                write_record(folder, engine.record(found), found, self._session.card_facts(engine.model))
            if not args.save_only_model:
                self._session.write_state(args, folder)

    def _drop_unsaved(self) -> None:
        # With save_strategy="best", the evaluation that follows this callback decides whether there is a save.
        if self._unsaved is not None:
            drop_unsaved(self._unsaved)
            self._unsaved = None


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    """Return the directory of the checkpoint of this step."""
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"


def _trained(args: TrainingArguments, event: dict[str, Any]) -> tuple[TrainingArguments, nn.Module]:
    """Return the arguments and the model of a training from an event. SetFit passes them beside objects of its own."""
    return event.get("st_args", args), event.get("st_model", event["model"])
