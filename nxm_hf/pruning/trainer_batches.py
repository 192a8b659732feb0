"""Batches of a Trainer whose model stands in a container, such as a SentenceTransformer, as inputs of that model."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from nxm_hf.layers.plan import Plan
from nxm_hf.pruning.calibration import Batch, max_length


def forward_inputs(batch: Batch, plan: Plan) -> list[Batch]:
    """Return the inputs of one or several forward passes of the model that a plan prunes.

    A batch of sentence-transformers holds the tokens of several texts, each under the name of its column:
    `anchor_input_ids`, `positive_input_ids`. A batch for a CrossEncoder holds the texts themselves.

    Args:
        batch: The batch, as the collator of the training data returns it.
        plan: The pruned layers and their model.

    Returns:
        The keyword arguments of the model's forward; for a model in no container, the batch as it is.

    Raises:
        ValueError: If the batch holds neither tokens nor texts.
    """
    if plan.whole is plan.model:
        return [batch]
    name = getattr(plan.model, "main_input_name", "input_ids")
    prefixes = [key.removesuffix(name) for key in batch if key == name or key.endswith(f"_{name}")]
    features = [_without_prefix(batch, prefix) for prefix in prefixes] or [_tokenized(batch, plan)]
    accepted = set(inspect.signature(plan.model.forward).parameters) - {"labels"}  # calibration needs no loss
    return [{key: value for key, value in part.items() if key in accepted} for part in features]


def held_tokenizer(plan: Plan) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer that the container of a model has, or None.

    Args:
        plan: The pruned layers and their model.
    """
    tokenizer = None if plan.whole is plan.model else getattr(plan.whole, "tokenizer", None)
    return tokenizer if isinstance(tokenizer, PreTrainedTokenizerBase) else None


def _without_prefix(batch: Mapping[str, Any], prefix: str) -> Batch:
    return {key.removeprefix(prefix): value for key, value in batch.items() if key.startswith(prefix)}


def _tokenized(batch: Mapping[str, Any], plan: Plan) -> Batch:
    """Tokenize the first one or two columns of texts, as a CrossEncoder reads pairs."""
    columns = [value for value in batch.values() if isinstance(value, list) and _are_texts(value)]
    tokenizer = held_tokenizer(plan)
    if not columns or tokenizer is None:
        raise ValueError(
            f"The training data gives {', '.join(batch)}, and {type(plan.model).__name__} needs tokens or texts. "
            "Prune first, with nxm_hf.prune(model, pattern, method, calibration=[...])."
        )
    length = max_length(plan.model, tokenizer, tokenizer.model_max_length)
    tokens = tokenizer(*columns[:2], padding=True, truncation=True, max_length=length, return_tensors="pt")
    return {key: value for key, value in tokens.items() if isinstance(value, Tensor)}


def _are_texts(values: list[Any]) -> bool:
    return bool(values) and all(isinstance(value, str) for value in values)
