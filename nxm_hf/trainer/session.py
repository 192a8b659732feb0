"""SparseTrainingSession: runs an engine inside a Trainer."""

import logging
import math
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from socket import gethostname
from typing import Any

from accelerate.utils import gather_object
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from nxm_hf.adapters.loading import restore_adapter
from nxm_hf.adapters.masked import is_masked
from nxm_hf.config import NxMConfig, SparsityRecord
from nxm_hf.distillation.teacher import Teacher
from nxm_hf.engine import Engine
from nxm_hf.engine.attach import engines_on
from nxm_hf.engine.optimizer_state import unwrapped
from nxm_hf.engine.requirements import check_shards, check_trainable
from nxm_hf.engine.sharded_state import cut
from nxm_hf.layers.modules import has_adapter, unwrap
from nxm_hf.layers.plan import Plan
from nxm_hf.storage.card_facts import CardFacts, DataFacts, base_model_of
from nxm_hf.storage.checkpoints import HAS_MANIFEST, PROCESSES
from nxm_hf.storage.file_digest import WriteDigest
from nxm_hf.storage.lock import DirectoryLock
from nxm_hf.storage.manifest import LOCK_FILE, MANIFEST_FILE, check_unchanged, remove_manifest
from nxm_hf.storage.model_card import TAG, write_card
from nxm_hf.storage.model_record import record_of
from nxm_hf.storage.restoring import load_weights
from nxm_hf.storage.same_model import check_same_model, check_same_teacher, fingerprints
from nxm_hf.storage.saving import write_record
from nxm_hf.storage.state_file import STATE_FILE, read_header, read_state, write_state
from nxm_hf.storage.verify import Verification, verify_targets
from nxm_hf.trainer.checkpoint_manifest import complete_after_state
from nxm_hf.trainer.evaluations import Evaluations
from nxm_hf.trainer.frozen_base import check_same_adapter, frozen_config
from nxm_hf.trainer.host_trainer import hide_parameters, show_parameters
from nxm_hf.trainer.run_file import describe_run, write_run_file
from nxm_hf.trainer.unsupported import is_fsdp, refuse_unsaved, refuse_unsupported, warn_of_unsharded

logger = logging.getLogger("nxm_hf")


class SparseTrainingSession:
    """Run an engine through the trainings of one Trainer: begin or resume, save its state, and end.

    `NxMTrainer` and `NxMCallback` each have a session and call it at the right moments.

    Args:
        config: What to prune and how.
        teacher: The teacher of a distillation, if there is one.
    """

    def __init__(self, config: NxMConfig, teacher: Teacher | None = None):
        self.config, self.teacher = config, teacher
        self.engine: Engine | None = None
        self.evaluations = Evaluations()
        self._data: Any = None  # of the last training
        self._written: dict[str, str] = {}  # digests of files of the last checkpoint, as they were to be written
        self._lock: DirectoryLock | None = None  # of the output directory, while a training runs

    def check(self, args: TrainingArguments, model: nn.Module) -> None:
        """Raise if this training is not supported. It is called before any training.

        Args:
            args: The arguments of the Trainer.
            model: The model.

        Raises:
            ValueError: If the training, the model or a layer is not supported.
        """
        refuse_unsupported(args, model)
        warn_of_unsharded(args)
        self.config = frozen_config(model, self.config) or self.config
        plan = Plan.of(model, self.config)
        refuse_unsaved(plan)
        if is_fsdp():
            check_shards(plan, self.config)
        check_trainable(plan)

    def begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        model: nn.Module,
        optimizer: Optimizer,
        train_dataloader: DataLoader | None,
        resume_from: str | Path | None,
        left_out: str = "",
    ) -> Engine:
        """Make the engine of a training, and restore its state if the training resumes.

        Args:
            args: The arguments of the Trainer.
            state: Its state.
            model: The model.
            optimizer: The optimizer, with or without accelerate's wrapper.
            train_dataloader: The training data.
            resume_from: The checkpoint to resume from, or None.
            left_out: Which files of a checkpoint other processes may still be writing when Trainer writes its state.

        Returns:
            The engine.
        """
        refuse_unsupported(args, model)  # arguments and environment can change after the Trainer was made
        if resume_from and not (Path(resume_from) / MANIFEST_FILE).exists():
            logger.warning("%s has no %s, as an older version wrote it; it is not checked.", resume_from, MANIFEST_FILE)
        plan = Plan.of(model, self.config)
        header, tensors = read_state(resume_from, partial(cut, plan)) if resume_from else ({}, {})
        if broken_off := engines_on(plan):  # the last training, of this Trainer or of another one
            # Begin from the weights that it trained, not from the masked ones.
            for engine in broken_off:
                engine.release()
            if resume_from:
                # Trainer skips this when it restarts a training after an OOM.
                if has_adapter(model):
                    restore_adapter(resume_from, model)
                else:
                    load_weights(resume_from, unwrap(model))
        plan = Plan.of(model, self.config)
        refuse_unsaved(plan)
        if resume_from:
            check_same_model(resume_from, header, plan)
            check_same_teacher(resume_from, header, self._teacher_description())
            check_same_adapter(resume_from, header, model)
        self._lock_output(args)
        self.engine = Engine(
            plan,
            unwrapped(optimizer),
            self.config,
            total_steps=state.max_steps,
            steps_per_epoch=_steps_per_epoch(args, train_dataloader),
            seed=args.seed,
            train_dataloader=train_dataloader,
        )
        if resume_from:
            self.engine.restore(header, tensors)
        if plan.targets:
            complete_after_state(state, left_out, self._written)
        self._describe(args, state, plan.model, train_dataloader)
        return self.engine

    def _describe(
        self, args: TrainingArguments, state: TrainerState, model: nn.Module, train_dataloader: DataLoader | None
    ) -> None:
        """Write the description of this training into the output directory, and keep its facts for the card."""
        engine = self.started_engine()
        self.evaluations.begin(state)
        self._data = getattr(train_dataloader, "dataset", None)
        if args.should_save and args.output_dir is not None:
            run = describe_run(args, model, engine.optimizer, self.config, self._data, state.max_steps)
            write_run_file(args.output_dir, run)

    def started_engine(self) -> Engine:
        """Return the engine of the training that runs.

        Raises:
            RuntimeError: If no training has begun.
        """
        if self.engine is None:
            raise RuntimeError("No training has begun, so there is no engine; call trainer.train() first.")
        return self.engine

    def prepare_best(self, state: TrainerState) -> None:
        """Check the best checkpoint before Trainer loads its weights, while the model has those of the last step.

        Args:
            state: The state of the Trainer.

        Raises:
            ValueError: If a file of the checkpoint has changed.
        """
        if self.engine is not None:
            self.engine.warn_at_end()
            if state.best_model_checkpoint is not None:
                advice = "It was the best; load another checkpoint with from_pretrained."
                check_unchanged(state.best_model_checkpoint, advice)

    def end(self, args: TrainingArguments, state: TrainerState, model: nn.Module) -> None:
        """Leave the deployed weights in the model, and remove the hooks.

        Args:
            args: The arguments of the Trainer.
            state: Its state.
            model: The model.
        """
        engine = self.started_engine()
        engine.warn_at_end()
        best = state.best_model_checkpoint
        if best is not None and self._best_is_loaded(args, state):
            if (Path(best) / STATE_FILE).is_file():  # save_only_model=True writes none
                check_same_model(best, read_header(best), engine.plan)
            self.evaluations.use_best(state)
            engine.detach()  # the loaded weights are deployed already; finish() would overwrite them
        else:
            engine.finish()
        if engine.plan.targets and isinstance(model, PreTrainedModel):
            model.add_model_tags(TAG)
        self.unlock_output()

    def unlock_output(self) -> None:
        """Let other processes train in the output directory. Nothing happens if no training has locked it."""
        if self._lock is not None:
            self._lock.release()

    def _lock_output(self, args: TrainingArguments) -> None:
        """Raise if another process trains in the output directory."""
        if args.should_save and args.output_dir is not None:
            self._lock = DirectoryLock(
                Path(args.output_dir) / LOCK_FILE,
                f"{args.output_dir} is the output_dir of another training. Wait for it, or name another output_dir",
            )
            self._lock.acquire()

    def _best_is_loaded(self, args: TrainingArguments, state: TrainerState) -> bool:
        if not args.load_best_model_at_end:
            return False
        # A hyper-parameter search can stop a trial during an evaluation, before the best model has been loaded.
        return not state.is_hyper_param_search or verify_targets(self.started_engine().plan.targets).ok

    def deployed(self) -> AbstractContextManager[None]:
        """Return a context in which the model holds its deployed weights. Every process enters it."""
        return self.engine.deployed(preview=True) if self.engine is not None else nullcontext()

    def deployed_alone(self) -> AbstractContextManager[None]:
        """Return a context of deployed weights for a call that Trainer makes in one process.

        Of one process there is no preview, and sharded weights stay as they are: they were deployed to be saved.
        """
        engine = self.engine
        return engine.deployed() if engine is not None and engine.plan.shards is None else nullcontext()

    def deployed_record(self, model: nn.Module, alone: bool = False) -> tuple[Plan, SparsityRecord, Verification]:
        """Verify the deployed weights, and describe the model. Call it inside `deployed()`.

        Args:
            model: The model, for a Trainer that has not trained.
            alone: True in a call of one process. Sharded weights are not verified again; the last result is used.

        Returns:
            The plan, the record to save, and what was found in the weights.

        Raises:
            ValueError: If a weight does not hold its pattern.
        """
        plan = self.engine.plan if self.engine is not None else Plan.of(model, self.config)
        verification = self._verify(plan, alone)
        if self.engine is None and not verification.ok:
            raise ValueError(
                "This model is still dense, so nothing was written. Call trainer.train() before you save it."
            )
        verification.raise_for_problems()
        return plan, record_of(plan, self.config, verification.density), verification

    def card_facts(self, model: nn.Module) -> CardFacts:
        """Return the origin of the deployed weights, for their card.

        Args:
            model: The model.
        """
        data = DataFacts.of(self._data).name
        return CardFacts(base_model_of(model), () if data is None else (data,), self.evaluations.current())

    def write_state(self, args: TrainingArguments, folder: str | Path) -> dict[str, str]:
        """Write the engine's state into a checkpoint. Call it inside `deployed()`, in every process.

        Args:
            args: The arguments of the Trainer.
            folder: The checkpoint.

        Returns:
            The fingerprints of the deployed weights.

        Raises:
            RuntimeError: If the processes hold different weights.
        """
        engine = self.started_engine()
        prints, here = fingerprints(engine.plan), (gethostname(), str(Path(folder).resolve()))
        each = gather_object([(prints, here)])  # of all processes
        if any(other != prints for other, _ in each):
            raise RuntimeError("The processes hold different weights; do they use the same seed?")
        tensors = engine.tensors(keep=args.should_save)
        if args.should_save:
            header = {**engine.header(), **prints, "teacher": self._teacher_description(), HAS_MANIFEST: True}
            header["masked_adapter"] = is_masked(engine.model)
            # Others write their random states on other machines, or into directories of their own.
            header[PROCESSES] = sum(where == here for _, where in each)
            digest = WriteDigest()
            write_state(folder, header, tensors, digest)
            self._written[STATE_FILE] = digest.hexdigest()
        return prints

    def prepare_push(self, args: TrainingArguments) -> None:
        """Write the record and the card into `output_dir` before it is uploaded.

        Trainer uploads only some files of a checkpoint.

        Args:
            args: The arguments of the Trainer.
        """
        engine = self.engine
        if engine is None or not engine.plan.targets or not args.should_save or args.output_dir is None:
            return
        with self.deployed_alone():
            verification = self._verify(engine.plan, alone=True)
            verification.raise_for_problems()
            remove_manifest(args.output_dir)  # Trainer copies newer weights there
            facts = self.card_facts(engine.model)
            write_record(args.output_dir, engine.record(verification), verification, facts)

    def write_card(self, args: TrainingArguments) -> None:
        """Write the card's section into the output directory, unless the weights were trained on without us.

        Args:
            args: The arguments of the Trainer.
        """
        engine = self.engine
        if engine is None or not engine.plan.targets or args.output_dir is None:
            return
        with self.deployed_alone():
            if (verification := self._verify(engine.plan, alone=True)).ok:
                facts = self.card_facts(engine.model)
                write_card(args.output_dir, engine.record(verification), verification, facts)

    def _verify(self, plan: Plan, alone: bool) -> Verification:
        if self.engine is None:
            return verify_targets(plan.targets)
        if alone and plan.shards is not None and self.engine.verification is not None:
            return self.engine.verification
        return self.engine.verify_deployed()

    def _teacher_description(self) -> dict[str, Any] | None:
        return None if self.teacher is None else self.teacher.record


class SessionCallback(TrainerCallback):
    """Pass the events of an NxMTrainer on to its session.

    Args:
        session: The session.
    """

    def __init__(self, session: SparseTrainingSession):
        self._session = session
        self.resume_from: str | Path | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model, optimizer, data = kwargs["model"], kwargs["optimizer"], kwargs.get("train_dataloader")
        self._session.begin(args, state, model, optimizer, data, self.resume_from)
        show_parameters(model, self._session.config)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._session.started_engine().step = state.global_step  # counts skipped steps too
        hide_parameters(kwargs["model"])

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
        self._session.end(args, state, kwargs["model"])

    def on_push_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._session.prepare_push(args)


def _steps_per_epoch(args: TrainingArguments, train_dataloader: Any) -> int | None:
    try:
        return max(math.ceil(len(train_dataloader) / args.gradient_accumulation_steps), 1)
    except TypeError:  # an iterable dataset has no length
        return None
