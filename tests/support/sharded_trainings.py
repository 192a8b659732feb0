"""Trainings with DDP and with FSDP2 on CPUs, watched step by step."""

import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.state import DistributedType
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainerCallback

import nxm_hf
from nxm_hf import NxMCallback, NxMTrainer
from nxm_hf.layers.sharding import local, part_sizes
from nxm_hf.storage.state_file import fingerprint
from tests.support.models import make_arguments, make_bert, make_rows
from tests.support.training import engine_of, without_times

LAYERS = {"transformer_layer_cls_to_wrap": ["BertLayer"]}  # by default accelerate 1.15 shards BERT's embeddings twice


class Watch(TrainerCallback):
    """Records, after every step, fingerprints of this process's rows of all weights, and of those behind a mask."""

    def __init__(self):
        self.trainer, self.steps, self.evaluated, self.sharded = None, [], [], []

    def on_step_end(self, args, state, control, model, **kwargs):
        trained = {target.name: weight for target, weight in engine_of(self.trainer).trained_weights()}
        sharded = all(isinstance(p, DTensor) for p in model.parameters())
        self.sharded.append(sharded)
        rows = [rows_of(tensors, sharded) for tensors in (dict(model.named_parameters()), trained)]
        self.steps.append([fingerprint(part.items()) for part in rows])

    def on_save(self, args, state, control, **kwargs):
        if args.process_index == 0:  # what Trainer does in one process alone, when it pushes a checkpoint
            self.trainer.callback_handler.on_push_begin(args, state, control)

    def on_prediction_step(self, args, state, control, model, **kwargs):
        self.evaluated.append(nxm_hf.verify(model, "2:4").ok)


def rows_of(tensors: dict[str, torch.Tensor], sharded: bool) -> dict[str, torch.Tensor]:
    """Return what this process has of sharded tensors, or what it would have of whole ones."""
    processes, rank = dist.get_world_size(), dist.get_rank()
    if sharded:
        return {name: local(tensor.detach()) for name, tensor in tensors.items()}
    return {name: tensor.detach().split(part_sizes(len(tensor), processes))[rank] for name, tensor in tensors.items()}


def train(
    folder: Path,
    config,
    fsdp: dict | None,
    resume=None,
    dropout: float = 0.0,
    rows=None,
    kind: str = "NxMTrainer",
    prepare: Callable[[Trainer], object] = id,
    end: Callable[[Trainer], object] = id,
    model: nn.Module | None = None,
    **changes,
) -> dict:
    """Train with DDP, or with FSDP2 if it is given settings, and return what is compared.

    Args:
        folder: `output_dir`.
        config: What to prune and how.
        fsdp: The `fsdp_config`; None for DDP.
        resume: The checkpoint to resume from.
        dropout: The dropout of the model.
        rows: The training data.
        kind: "NxMTrainer", or "NxMCallback" in a plain Trainer.
        prepare: Is called with the Trainer before it trains.
        end: Is called with the Trainer after it has trained.
        model: The model; by default a BERT.
        changes: Arguments of TrainingArguments.
    """
    words = dict(max_steps=12, save_steps=6, per_device_train_batch_size=4, max_grad_norm=0, logging_steps=2)
    os.environ.pop("ACCELERATE_USE_FSDP", None)  # of a training before
    args = make_arguments(folder, **{**words, **changes, "fsdp": fsdp is not None, "fsdp_config": fsdp})
    if fsdp is not None:  # accelerate shards over GPUs only, unless it takes these processes for some
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    watch, rows = Watch(), rows or make_rows(32)
    model = model or make_bert(hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    torch.manual_seed(1)
    data = dict(train_dataset=rows, eval_dataset=rows[:16])
    if kind == "NxMTrainer":
        trainer = NxMTrainer(model, args, **data, sparsity=config, callbacks=[watch])
    else:
        trainer = Trainer(model, args, **data, callbacks=[watch, NxMCallback(config, resume_from=resume)])
    watch.trainer = trainer
    prepare(trainer)
    trainer.train(resume_from_checkpoint=resume and str(resume))
    end(trainer)
    if "eval_steps" in changes:
        trainer.save_model(str(folder / "final"))
        if dist.get_rank() == 0:
            trainer.create_model_card()
    return {
        "steps": watch.steps,
        "sharded": watch.sharded,
        "evaluated": watch.evaluated,
        "weights": fingerprint(trainer.model.named_parameters()),
        "ok": nxm_hf.verify(trainer.model, "2:4").ok,
        "best": trainer.state.best_model_checkpoint,
        "records": without_times(trainer.state.log_history[:-1]),
    }
