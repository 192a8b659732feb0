"""Calibration data: a few batches for the model's forward, from texts, a file, the Hub or ready-made batches."""

import inspect
import logging
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from nxm_hf.pruning.text_rows import read_texts

logger = logging.getLogger("nxm_hf")
Batch = dict[str, Any]
CHARACTERS_PER_TOKEN = 40  # read for each token wanted: several times what is needed, so that samples lie far apart


@dataclass(frozen=True)
class Sampling:
    """The amount of text to read, and the way to cut it into sequences.

    Args:
        samples: The number of sequences.
        length: The number of tokens of a sequence, at most.
        batch_size: The number of sequences of a batch.
        pack: Whether to join all texts and cut them into sequences of full length. If False, each text is a sequence
            of its own, cut at `length`. By default, a file or dataset is packed if the tokenizer puts no special
            token after a text. Such models read a stream, while encoders are trained on single texts.
        columns: The columns to read, if rows have several; by default the first that holds text.
        seed: Draw the sequences at random by this seed. By default, they are evenly spaced.
    """

    samples: int = 128
    length: int = 128
    batch_size: int = 8
    pack: bool | None = None
    columns: str | Sequence[str] | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, value in {"samples": self.samples, "length": self.length, "batch_size": self.batch_size}.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number from 1 on; got {value!r}. Write {name}=128.")
        if self.seed is not None and (isinstance(self.seed, bool) or not isinstance(self.seed, int)):
            raise ValueError(f"seed must be a whole number; got {self.seed!r}. Write seed=0.")


def evenly_spaced(count: int, total: int) -> list[int]:
    """Choose evenly spaced indices.

    Args:
        count: The number of indices; at most `total`.
        total: The number of entries to choose from.

    Returns:
        `count` increasing indices below `total`.

    >>> evenly_spaced(4, 10)
    [0, 2, 5, 7]
    """
    return [number * total // count for number in range(count)]


def make_batches(
    calibration: str | Path | Iterable,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase | None = None,
    sampling: Sampling | None = None,
) -> list[Batch]:
    """Make the batches that the model is calibrated with, on the CPU.

    Args:
        calibration: Texts, rows that hold texts, a file, the name of a Hub dataset, or ready batches. Ready batches are
            dicts of tensors, as a DataLoader yields; all of them are used unchanged.
        model: The model, without wrappers.
        tokenizer: The tokenizer; by default that of the model's own directory.
        sampling: How much text to read.

    Returns:
        The keyword arguments of one forward pass each.

    Raises:
        ValueError: If the data is empty, the model does not read text, or the tokenizer is missing or does not match.
        TypeError: If the data is one batch, or holds numbers; or if the tokenizer is a name.
    """
    sampling = sampling or Sampling()
    is_file_or_dataset = isinstance(calibration, (str, Path))
    _check_kinds(calibration, tokenizer)
    if not isinstance(calibration, (str, Path)):
        entries = iter(calibration)
        if (first := next(entries, None)) is None:
            raise ValueError('The calibration data is empty; give texts, as in calibration=["A sentence.", ...].')
        calibration = chain([first], entries)
        if isinstance(first, Mapping) and any(isinstance(value, Tensor) for value in first.values()):
            return [dict(batch) for batch in calibration]
        if not isinstance(first, (str, Mapping)):
            raise TypeError(
                f"calibration takes texts, rows or batches, and holds {first!r}. Write "
                'calibration=["A sentence.", ...], or calibration=[{"input_ids": ids}, ...].'
            )
    _check_reads_text(model)
    tokenizer = tokenizer or load_tokenizer(model)
    texts = _enough_texts(read_texts(calibration, sampling.columns), sampling)
    pack = is_file_or_dataset and not _special_tokens(tokenizer)[1] if sampling.pack is None else sampling.pack
    length = max_length(model, tokenizer, sampling.length)
    sequences = _pack(texts, tokenizer, length) if pack else _truncate(texts, tokenizer, length)
    chosen = _choose(sequences, sampling)
    check_vocabulary(chosen, cast(PreTrainedModel, model), tokenizer)
    starts = range(0, len(chosen), sampling.batch_size)
    return [_batch(chosen[start : start + sampling.batch_size], model, tokenizer) for start in starts]


def _check_reads_text(model: nn.Module) -> None:
    input_name = getattr(model, "main_input_name", "input_ids")
    if input_name != "input_ids":
        raise ValueError(
            f"{type(model).__name__} takes {input_name}, not text; give ready batches, as in "
            f'calibration=[{{"{input_name}": tensor}}, ...].'
        )


def load_tokenizer(model: nn.Module) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the directory or repository that a model was loaded from.

    Args:
        model: The model.

    Returns:
        Its tokenizer.

    Raises:
        ValueError: If the model was not loaded from a directory, or that has no tokenizer.
    """
    folder = getattr(model, "name_or_path", "")
    remedy = "Pass tokenizer=AutoTokenizer.from_pretrained(...), or ready batches."
    if not folder:
        raise ValueError(f"This {type(model).__name__} is from no directory, so its tokenizer is not known. {remedy}")
    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # transformers raises many types for files that are missing or damaged
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{folder} has no tokenizer that can be loaded ({reason}). {remedy}") from error


def named_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer that a user names.

    Args:
        name: A directory, or a repository of the Hub.

    Raises:
        FileNotFoundError: If there is none.
    """
    try:
        return AutoTokenizer.from_pretrained(name)
    except Exception as error:  # transformers raises many types for files that are missing or damaged
        raise FileNotFoundError(
            f"{name} is neither a directory with a tokenizer nor one on the Hub in reach. Name the directory that the "
            "model is from."
        ) from error


def _check_kinds(calibration: object, tokenizer: object) -> None:
    """Raise for one batch instead of several, and for the name of a tokenizer instead of a tokenizer."""
    if isinstance(calibration, (Tensor, Mapping)) and not hasattr(calibration, "column_names"):
        raise TypeError(
            f"calibration takes several batches, and got one {type(calibration).__name__}. Write "
            'calibration=[{"input_ids": ids}].'
        )
    if isinstance(tokenizer, (str, Path)):
        raise TypeError(
            f"tokenizer must be a tokenizer, and {str(tokenizer)!r} is a name. Write "
            f"tokenizer=AutoTokenizer.from_pretrained({str(tokenizer)!r})."
        )


def _enough_texts(texts: Iterable[str], sampling: Sampling) -> list[str]:
    """Read as many texts as the samples are chosen from, and no more."""
    read, characters = [], 0
    for text in texts:
        read.append(text)
        characters += len(text)
        if characters >= CHARACTERS_PER_TOKEN * sampling.samples * sampling.length:
            break
    if not read:
        raise ValueError("The calibration data holds no text, only empty entries; give some sentences.")
    return read


def max_length(model: nn.Module, tokenizer: PreTrainedTokenizerBase, length: int) -> int:
    """Limit a length to what model and tokenizer can read.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        length: The number of tokens that is wanted.

    Returns:
        The length, or the smallest of the limits.
    """
    positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    limits = [limit for limit in (positions, tokenizer.model_max_length) if isinstance(limit, int) and limit > 0]
    return min(length, *limits) if limits else length


def _truncate(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int) -> list[list[int]]:
    """Make each text a sequence of its own, with special tokens."""
    return [ids for ids in tokenizer(list(texts), truncation=True, max_length=length)["input_ids"] if ids]


def _pack(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int) -> list[list[int]]:
    """Join the texts, and cut them into sequences of full length with special tokens; the remainder is dropped."""
    before, after = _special_tokens(tokenizer)
    ids = tokenizer("\n".join(texts), add_special_tokens=False, verbose=False)["input_ids"]
    room = max(length - len(before) - len(after), 1)
    count = max(len(ids) // room, 1)
    return [before + ids[number * room : (number + 1) * room] + after for number in range(count)]


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the special tokens that the tokenizer puts before and after a text."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return full[:start], full[start + len(plain) :]
    return [], []


def _choose(sequences: list[list[int]], sampling: Sampling) -> list[list[int]]:
    """Choose sequences, evenly spaced or at random. If there are too few, warn and use all."""
    if len(sequences) < sampling.samples:
        logger.warning(
            "The calibration data gives %d sequences where samples=%d were asked for; all are used.",
            len(sequences),
            sampling.samples,
        )
        return sequences
    if sampling.seed is not None:
        return random.Random(sampling.seed).sample(sequences, sampling.samples)
    return [sequences[number] for number in evenly_spaced(sampling.samples, len(sequences))]


def check_vocabulary(
    sequences: Sequence[list[int]], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Raise for a tokenizer that does not match; transformers makes an empty one for a directory without.

    Args:
        sequences: The tokens of a text.
        model: The model that is to read them.
        tokenizer: The tokenizer that they are from.

    Raises:
        ValueError: If most tokens are unknown, or one is not in the model's vocabulary.
    """
    remedy = "Pass tokenizer=AutoTokenizer.from_pretrained(...) of the directory that the model is from."
    tokens = list(chain.from_iterable(sequences))
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}  # those around each text tell nothing
    words = [token for token in tokens if token not in special] or tokens
    unknown = words.count(tokenizer.unk_token_id) / len(words)
    if unknown > 0.5:
        raise ValueError(f"The tokenizer does not know {unknown:.0%} of the text's tokens. {remedy}")
    embeddings: Any = model.get_input_embeddings()
    vocabulary = embeddings.num_embeddings
    if max(tokens) >= vocabulary:
        raise ValueError(
            f"The tokenizer gives token {max(tokens)}, but the model's vocabulary has {vocabulary} entries: tokenizer "
            f"and model do not match. {remedy}"
        )


def _batch(sequences: Sequence[list[int]], model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Batch:
    """Pad sequences on the right to the same length, and add the attention mask."""
    length = max(map(len, sequences))
    padding = tokenizer.pad_token_id or 0
    ids = torch.tensor([ids + [padding] * (length - len(ids)) for ids in sequences])
    mask = torch.tensor([[1] * len(ids) + [0] * (length - len(ids)) for ids in sequences])
    batch = {"input_ids": ids, "attention_mask": mask}
    if getattr(model.config, "is_encoder_decoder", False):
        batch |= {"decoder_input_ids": _shift_right(ids, model), "decoder_attention_mask": mask}
    accepted = inspect.signature(model.forward).parameters
    return {name: tensor for name, tensor in batch.items() if name in accepted}


def _shift_right(ids: Tensor, model: nn.Module) -> Tensor:
    """Return the decoder's input for the same text: a start token, and all tokens but the last."""
    names = ("decoder_start_token_id", "bos_token_id", "pad_token_id")
    start = next((token for name in names if (token := getattr(model.config, name, None)) is not None), 0)
    return torch.cat([torch.full_like(ids[:, :1], start), ids[:, :-1]], dim=1)
