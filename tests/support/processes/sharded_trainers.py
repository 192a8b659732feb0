"""The program of the tests of Trainers with FSDP2: two processes train as users do. Run it as `-m ... FOLDER`."""

import importlib.util
import logging
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState, DistributedType
from torch.distributed.fsdp import CPUOffloadPolicy
from torch.distributed.tensor import DTensor
from transformers import PreTrainedTokenizerFast, Trainer

import nxm_hf
from nxm_hf import NxMCallback
from nxm_hf.storage.state_file import fingerprint
from tests.support.forked_groups import Groups, main
from tests.support.models import make_model
from tests.support.sharded_modes import weights_of
from tests.support.sharded_trainings import LAYERS, train


def offload(trainer: Trainer) -> None:
    """Offload shards to CPUs, without pinned memory, which needs a GPU."""
    trainer.accelerator.state.fsdp_plugin.cpu_offload = CPUOffloadPolicy(pin_memory=False)


# Arguments of `train`. The first mode is what the others are compared with.
MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "kept": {"fsdp": {**LAYERS, "reshard_after_forward": False}},
    "recomputed": {"gradient_checkpointing": True},
    "recomputed by FSDP": {"fsdp": {**LAYERS, "activation_checkpointing": True}},
    "offloaded": {"prepare": offload},
    "bf16": {"bf16": True},
    "compiled": {"torch_compile": True, "torch_compile_backend": "eager"},
}


def modes(folder: Path, mode: str) -> dict:
    """Train by the default recipe, which prunes sharded weights with rows of the data halfway through."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("nxm_hf").addHandler(handler)
    AcceleratorState._reset_state()  # of the mode before: it remembers precision and compilation
    changes, trainers = dict(MODES[mode]), []
    prepare = changes.pop("prepare", id)
    facts = train(
        folder,
        "admm",
        **{"fsdp": LAYERS, "max_steps": 8, "save_steps": 8, **changes},
        prepare=lambda trainer: trainers.append(trainer) or prepare(trainer),
    )
    logging.getLogger("nxm_hf").removeHandler(handler)
    return {**facts, "weights": weights_of(trainers[0].model), "said": said}


def adapted(folder: Path, kind: str) -> dict:
    """Train a LoRA on a sparse base with DDP and with FSDP2, and resume each with FSDP2, if PEFT is installed."""
    if importlib.util.find_spec("peft") is None:
        return {}
    from tests.support.adapters import make_adapted

    facts, words = {}, dict(max_steps=4, save_steps=2, eval_steps=2, eval_strategy="steps")
    words |= dict(load_best_model_at_end=True, greater_is_better=True)  # of the loss, so that it is not the last
    for name, fsdp, begun in (
        ("ddp", None, None),
        ("fsdp", LAYERS, None),
        ("ddp, resumed", LAYERS, folder / "ddp" / "checkpoint-2"),
        ("fsdp, resumed", LAYERS, folder / "fsdp" / "checkpoint-2"),
    ):
        AcceleratorState._reset_state()
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_CPU  # as it was before FSDP
        model = make_adapted(masked=kind == "masked")
        facts[name] = train(folder / name, None, fsdp, begun, model=model, **words)
    return facts


def sft(folder: Path) -> dict:
    """Train with NxMCallback in the SFTTrainer of TRL, and resume from its first checkpoint, if TRL is installed."""
    if importlib.util.find_spec("trl") is None:
        return {}
    begun = folder / "begun"
    return {"begun": tuned(begun), "resumed": tuned(folder / "resumed", begun / "checkpoint-2")}


def tuned(folder: Path, resume: Path | None = None) -> dict:
    """Fine-tune a Llama on texts with SFTTrainer."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from trl import SFTConfig, SFTTrainer

    words = "the cat sat on a mat and then some dog ran over hills all day long".split()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    vocabulary = {word: number for number, word in enumerate([*special.values(), *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    texts = Dataset.from_list([{"text": " ".join(words[n % 7 :] + words[: n % 5])} for n in range(16)])
    AcceleratorState._reset_state()
    words = dict(max_steps=4, save_steps=2, eval_steps=2, eval_strategy="steps", load_best_model_at_end=True)
    words |= dict(per_device_train_batch_size=2, use_cpu=True, report_to=[], disable_tqdm=True, max_length=16)
    words |= dict(fsdp=True, fsdp_config={"transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]})
    args = SFTConfig(str(folder), **words)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU  # as in `train`
    torch.manual_seed(1)
    trainer = SFTTrainer(
        make_model("llama"),
        args,
        train_dataset=texts,
        eval_dataset=texts,
        processing_class=PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special),
        callbacks=[NxMCallback("admm", resume_from=resume)],
    )
    trainer.train(resume_from_checkpoint=resume and str(resume))
    sharded = all(isinstance(parameter, DTensor) for parameter in trainer.model.parameters())
    trainer.save_model(str(folder / "final"))
    ok = nxm_hf.verify(trainer.model, "2:4").ok
    return {"sharded": sharded, "ok": ok, "weights": fingerprint(trainer.model.named_parameters())}


GROUPS: Groups = {
    "2": (2, {modes: [(mode,) for mode in MODES], adapted: [("plain",), ("masked",)], sft: [()]}),
}


if __name__ == "__main__":
    main(GROUPS, sys.argv[1])
