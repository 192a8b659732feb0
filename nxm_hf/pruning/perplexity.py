"""Perplexity of a causal language model on a text, read in windows."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from nxm_hf.layers.modules import eval_no_grad, unwrap
from nxm_hf.pruning.calibration import check_vocabulary, load_tokenizer, max_length
from nxm_hf.pruning.text_rows import joined_text

CONTEXT = 2048  # tokens of a window, unless the model reads fewer
BATCH_TOKENS = 4096  # of the windows that are read together


@dataclass(frozen=True)
class Perplexity:
    """The perplexity of a text. It prints as one line.

    Args:
        perplexity: The exponential of `loss`.
        loss: The mean of -log p over the predicted tokens.
        tokens: The number of predicted tokens.
        context: Tokens of a window.
        stride: Tokens from the start of one window to the start of the next.
    """

    perplexity: float
    loss: float
    tokens: int
    context: int
    stride: int

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as a dict that JSON can hold."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"perplexity {self.perplexity:.4f} (loss {self.loss:.4f}) on {self.tokens} tokens, "
            f"context {self.context}, stride {self.stride}"
        )


@dataclass(frozen=True)
class TextEvaluation:
    """A text for one causal language model. Calling it with a model returns the perplexity.

    Args:
        ids: The tokens of the text, [tokens].
        context: Tokens of a window.
        stride: Tokens from the start of one window to the start of the next.
    """

    ids: Tensor
    context: int
    stride: int

    @classmethod
    def from_text(
        cls,
        source: str | Path | Iterable,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase | None = None,
        context: int | None = None,
        stride: int | None = None,
        columns: str | list[str] | None = None,
    ) -> "TextEvaluation":
        """Read a text for a model. See `perplexity` for the arguments and errors."""
        if not is_causal(model):
            raise ValueError(
                f"{type(unwrap(model)).__name__} predicts no next token; perplexity needs a causal language model, "
                "such as AutoModelForCausalLM loads."
            )
        tokenizer = tokenizer or load_tokenizer(model)
        context = context or max_length(model, tokenizer, CONTEXT)
        stride = stride or context
        most = getattr(getattr(model, "config", None), "max_position_embeddings", None)
        if isinstance(most, int) and context > most > 1:
            raise ValueError(f"context={context} is more than the {most} tokens that the model reads. Write {most}.")
        if not 1 <= stride <= context or context < 2:
            raise ValueError(
                f"context={context} and stride={stride} leave tokens out; write a context of at least 2, and a stride "
                "from 1 to the context."
            )
        ids = tokenizer(joined_text(source, columns), return_tensors="pt", verbose=False)["input_ids"][0]
        if len(ids) < 2:
            raise ValueError(f"The text has {len(ids)} tokens, and perplexity needs at least 2. Give more text.")
        check_vocabulary([ids.tolist()], cast(PreTrainedModel, unwrap(model)), tokenizer)
        return cls(ids, context, stride)

    @property
    def unit(self) -> str:
        """Return what is counted in `count`."""
        return "tokens"

    @property
    def count(self) -> int:
        """Return the number of predicted tokens."""
        return sum(end - max(predicted, begin + 1) for begin, predicted, end in self._windows())

    def measure(self, model: nn.Module) -> Perplexity:
        """Return the perplexity of the text.

        Args:
            model: The model; it is run in evaluation mode.
        """
        with eval_no_grad(model):
            loss = sum(self._loss(model, windows) for windows in self._batches()) / self.count
        value = math.exp(loss) if loss < 700 else math.inf
        return Perplexity(value, loss, self.count, self.context, self.stride)

    def __call__(self, model: nn.Module) -> dict[str, float | None]:
        """Return the perplexity as metrics.

        Args:
            model: The model.
        """
        return {"perplexity": self.measure(model).perplexity}

    def _windows(self) -> Iterator[tuple[int, int, int]]:
        """Yield for each window its begin, the first token that no window before it had, and its end."""
        predicted = 0
        for begin in range(0, len(self.ids), self.stride):
            end = min(begin + self.context, len(self.ids))
            if end - max(predicted, begin + 1) > 0:
                yield begin, predicted, end
            predicted = end
            if end == len(self.ids):
                return

    def _batches(self) -> Iterator[list[tuple[int, int, int]]]:
        """Yield windows of one length, several at a time."""
        size = max(BATCH_TOKENS // self.context, 1)
        batch: list[tuple[int, int, int]] = []
        for window in self._windows():
            if batch and (len(batch) == size or window[2] - window[0] != batch[0][2] - batch[0][0]):
                yield batch
                batch = []
            batch.append(window)
        if batch:
            yield batch

    def _loss(self, model: nn.Module, windows: list[tuple[int, int, int]]) -> float:
        """Return the sum of -log p over the tokens that are new in these windows."""
        device = next(model.parameters()).device
        ids = torch.stack([self.ids[begin:end] for begin, _, end in windows]).to(device)
        targets = ids.clone()
        for row, (begin, predicted, _) in enumerate(windows):
            targets[row, : max(predicted - begin, 0)] = -100
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        losses = cross_entropy(logits.float().flatten(0, 1), targets[:, 1:].flatten(), reduction="none")
        return float(losses.double().sum())


def perplexity(
    model: nn.Module,
    text: str | Path | Iterable,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    context: int | None = None,
    stride: int | None = None,
    columns: str | list[str] | None = None,
) -> Perplexity:
    """Return the perplexity of a causal language model on a text.

    The text is tokenized as a whole and read in windows. Every token is predicted once, from the tokens before it in
    the first window that holds it. The first token of a window that does not overlap another is not predicted. With
    `stride` = `context`, that is how papers on pruning measure WikiText-2; a smaller stride gives each token more
    context and takes longer.

    Args:
        model: The model; on any device, sparse, dense or packed.
        text: A list of texts; or a .txt, .parquet, .csv, .tsv or .jsonl file; or the name of a Hub dataset. Rows are
            joined by two line breaks. A .txt file is read as it is.
        tokenizer: The model's tokenizer; by default that of the model's own directory.
        context: Tokens of a window; by default 2048, or as many as the model reads.
        stride: Tokens from the start of one window to the start of the next; by default `context`.
        columns: The columns of a file or dataset to read; by default the first that holds text.

    Returns:
        The perplexity, with the number of tokens it is of.

    Raises:
        ValueError: If the model is no causal language model, the text is too short, or `context` and `stride` leave
            tokens out.
        FileNotFoundError: If `text` is neither a file nor a Hub dataset.
    """
    return TextEvaluation.from_text(text, model, tokenizer, context, stride, columns).measure(model)


def is_causal(model: nn.Module) -> bool:
    """Return True if a model is one that AutoModelForCausalLM loads.

    Args:
        model: The model.
    """
    names = {name for value in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() for name in _as_tuple(value)}
    return type(unwrap(model)).__name__ in names


def _as_tuple(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)
