"""What tests share: a tiny BERT made by config, rows made by code, and the arguments of a short training."""

import gc
import os

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", HF_HUB_DISABLE_PROGRESS_BARS="1")

import pytest
import torch
import transformers
from hypothesis import settings
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

# A recipe of each kind: a mask for good, one solved anew, a dense copy with a dual, weights that grow.
FEW = ["asp", "sr-ste", "admm", "rigl"]
# The same examples everywhere, however slow; `--hypothesis-profile=default` draws others.
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")
torch.set_num_threads(1)  # tiny tensors: threads only contend
transformers.utils.logging.disable_progress_bar()


def make_bert(seed: int = 0, **changes) -> BertForSequenceClassification:
    """A BERT of two layers with random weights; the same for the same seed."""
    torch.manual_seed(seed)
    words = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=50)
    words.update(max_position_embeddings=32, problem_type="single_label_classification")
    return BertForSequenceClassification(BertConfig(**{**words, **changes}))


def make_rows(count: int = 64, length: int = 8) -> list[dict[str, torch.Tensor]]:
    """Rows whose label is the parity of their first token."""
    ids = torch.randint(0, 50, (count, length), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row[0] % 2} for row in ids]


def make_arguments(output_dir, **changes) -> TrainingArguments:
    """The arguments of a training of 12 steps on the CPU."""
    words = dict(
        output_dir=str(output_dir),
        max_steps=12,
        per_device_train_batch_size=8,
        learning_rate=1e-3,
        weight_decay=0.01,
        save_steps=6,
        logging_steps=3,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        seed=0,
    )
    return TrainingArguments(**{**words, **changes})


def assert_equal_weights(one: torch.nn.Module, other: torch.nn.Module) -> None:
    """Raise unless two models hold the same weights, bit for bit."""
    different = [
        name
        for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True)
        if not torch.equal(a, b)
    ]
    assert not different, f"these weights differ: {different}"


def spare_imports() -> None:
    """Accelerate looks for garbage at every training; it need not look at what modules made when they were imported."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def imports_are_no_garbage():
    spare_imports()


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def rows():
    return make_rows()


@pytest.fixture
def arguments(tmp_path):
    return lambda **changes: make_arguments(tmp_path, **changes)
