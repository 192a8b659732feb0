"""Students, teachers and texts of distillation."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, BertForSequenceClassification, PreTrainedModel

from nxm_hf import DistillationConfig, NxMTrainer
from tests.support.models import make_bert, make_rows
from tests.support.training import NO_DROPOUT, first_step, make_12_step_trainer

EAGER = dict(attn_implementation="eager")
ALL = DistillationConfig(temperature=3.0, weight=0.3, hidden=0.2, attention=0.1)


def make_quiet_bert(seed: int = 0, **changes) -> BertForSequenceClassification:
    """Return a tiny BERT without dropout, whose attention maps can be read."""
    return make_bert(seed, **{**NO_DROPOUT, **EAGER, **changes})


def make_quiet_gpt2(seed: int = 0) -> PreTrainedModel:
    """Return a tiny GPT-2 without dropout, whose attention maps can be read."""
    torch.manual_seed(seed)
    shape = dict(n_embd=32, n_layer=2, n_head=2, vocab_size=50, n_positions=32, bos_token_id=0, eos_token_id=1)
    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model("gpt2", **shape, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0), **EAGER
    )


def make_labelled_texts() -> list[dict[str, torch.Tensor]]:
    """Return 8 rows of a language model that have 3 to 8 labels."""
    rows = make_rows(8)
    for number, row in enumerate(rows):
        row["labels"] = row["input_ids"].masked_fill(torch.arange(8) < number % 6, -100)
    return rows


def make_student(folder, model, teacher=None, distillation=None, sparsity="admm", **changes) -> NxMTrainer:
    """Return a trainer of 12 steps whose model learns from a teacher too."""
    return make_12_step_trainer(folder, sparsity, model=model, teacher=teacher, distillation=distillation, **changes)


def first_distilled_step(folder, model, teacher, distillation, times: int = 1, sparsity="admm", **changes):
    """Return the gradients and the logged loss of one step over 8 rows, in `times` parts; in `admm` it is dense."""
    changes = {"rows": make_rows(8), **changes}
    _, gradients, loss = first_step(
        folder, sparsity, model, times, teacher=teacher, distillation=distillation, **changes
    )
    return gradients, loss
