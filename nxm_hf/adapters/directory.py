"""Merge a saved adapter and its base into another directory, which is written in full or not at all."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from transformers import AutoTokenizer

from nxm_hf.adapters.loading import load_adapter
from nxm_hf.adapters.merging import MergeResult, merge
from nxm_hf.layers.plan import Plan
from nxm_hf.pruning.calibration import Sampling, make_batches
from nxm_hf.storage.adapter_files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    SavedAdapter,
    check_adapter_weights,
    read_adapter,
)
from nxm_hf.storage.card_facts import CardFacts, base_model_of
from nxm_hf.storage.manifest import RESTORE, check_unchanged
from nxm_hf.storage.model_files import load_with_missing, model_class, read_model_config
from nxm_hf.storage.model_record import read_record
from nxm_hf.storage.model_source import model_directory
from nxm_hf.storage.saving import bytes_of, check_free, check_written, copy_beside, write_record, written_whole
from nxm_hf.storage.verify import verify
from nxm_hf.text import shortened

# The classes of the models that an adapter is trained on, by PEFT's name of the task.
_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "FEATURE_EXTRACTION": "AutoModel",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
}
_HEADS = ("classifier.weight", "score.weight", "classifier.out_proj.weight")  # one row for each label


def merge_directory(
    base: str | Path,
    adapter: str | Path,
    out: str | Path,
    method: str | None = None,
    calibration: str | Path | None = None,
    sampling: Sampling | None = None,
) -> MergeResult:
    """Load a base model and its adapter, merge them, and save the sparse model with the files beside the base.

    Args:
        base: The directory of the sparse base model, or its name on the Hub.
        adapter: The directory of the adapter, or its name on the Hub.
        out: The directory to write; it must not exist, or be empty.
        method: See `nxm_hf.merge_adapter`.
        calibration: A file of texts or the name of a Hub dataset, for `method`.
        sampling: How much of it to read.

    Returns:
        The result, with a row for each layer.

    Raises:
        ValueError: If `out` exists, the two do not belong together, or the base is not sparse.
        FileNotFoundError: If there is no base model or no adapter.
        ImportError: If PEFT is not installed.
    """
    out = Path(out)
    check_free(out)
    base, adapter = model_directory(str(base)), model_directory(str(adapter))
    saved = read_adapter(adapter)
    if saved is None:
        raise FileNotFoundError(f"{adapter} holds no {ADAPTER_CONFIG}. Name a directory that PEFT saved an adapter to.")
    check_adapter_weights(adapter)
    for source in (base, adapter):
        check_unchanged(source, RESTORE)
    model = load_adapter(_load_base(base, saved), adapter)
    batches = None
    if calibration is not None:
        batches = make_batches(calibration, model.get_base_model(), AutoTokenizer.from_pretrained(base), sampling)
    result = merge(model, method, batches)
    with written_whole(out, bytes_of(result.model)) as folder:
        _write(result, base, folder)
    return result


def _load_base(base: str, saved: SavedAdapter) -> Any:
    """Load the base in the class that the adapter was trained on, and check that no weight stays random."""
    trained = _trained_weights(saved.folder)
    config = read_model_config(base)
    cls: Any = model_class(config, base)
    auto = saved.config.get("auto_mapping") or {}  # PEFT writes it for an adapter without a task
    name = _CLASSES.get(str(saved.config.get("task_type")), str(auto.get("base_model_class")))
    cls = getattr(transformers, name, cls)
    heads = [shape for key, shape in trained.items() if key.endswith(_HEADS)]
    options: dict[str, Any] = {"num_labels": heads[0][0]} if heads else {}
    model, missing = load_with_missing(cls, base, **options)
    if absent := [key for key in missing if not any(name.endswith(f".{key}") for name in trained)]:
        raise ValueError(
            f"Neither {base} nor {saved.folder} holds {shortened(absent)}. Name the base that the adapter was trained "
            "on, or train the adapter with modules_to_save=[...] for a new head."
        )
    return model


def _trained_weights(folder: Path) -> Mapping[str, tuple[int, ...]]:
    """Return the shape of each tensor of an adapter, by name."""
    with safe_open(folder / ADAPTER_WEIGHTS, "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}


def _write(result: MergeResult, base: str, folder: Path) -> None:
    model, record = result.model, read_record(result.model)
    assert record is not None  # merge has set it
    model.save_pretrained(folder)
    copy_beside(base, folder)
    write_record(folder, record, verify(model), CardFacts(base_model_of(model), new_weights=True))
    with torch.no_grad():
        check_written(folder, Plan.of(model, record.config.for_finetuning()))
