"""Calibration data: a few batches of what a model reads, from texts, files, the Hub or ready-made."""

import inspect
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from nxm_hf.pruning.text_rows import read_texts

logger = logging.getLogger("nxm_hf")
Batch = dict[str, Any]
SLACK = 40  # characters read for each token wanted: several times what is needed, so that samples stand apart


@dataclass(frozen=True)
class Sampling:
    """How much of a text is read: `samples` sequences of `length` tokens, `batch_size` at a time.

    `pack` joins the texts and cuts them into sequences of full length; without it each text is a sequence of its own,
    cut at `length`. By default a file or a data set is packed for models that read a stream, whose tokenizer puts
    nothing after a text; those that mark its end, as encoders do, have been trained on texts by themselves.
    """

    samples: int = 128
    length: int = 128
    batch_size: int = 8
    pack: bool | None = None
    columns: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        for name in ("samples", "length", "batch_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number from 1 on; got {value!r}. Write {name}=128.")


def make_batches(
    calibration: str | Path | Iterable,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase | None = None,
    sampling: Sampling | None = None,
) -> list[Batch]:
    """What a model is to be called with, one dict after another, on the CPU.

    `calibration` is a list of texts or of rows with texts in them, a file, the name of a data set on the Hub, or
    ready batches: dicts of tensors, such as a DataLoader gives. Those are taken as they are, all of them.
    """
    sampling = sampling or Sampling()
    from_place = isinstance(calibration, (str, Path))
    if not from_place:
        entries = iter(calibration)
        if (first := next(entries, None)) is None:
            raise ValueError('The calibration data is empty; give texts, as in calibration=["A sentence.", ...].')
        calibration = chain([first], entries)
        if isinstance(first, Mapping) and any(isinstance(value, Tensor) for value in first.values()):
            return [dict(batch) for batch in calibration]
    _check_reads_text(model)
    tokenizer = tokenizer or tokenizer_of(model)
    texts = _enough(read_texts(calibration, sampling.columns), sampling)
    pack = from_place and not _around(tokenizer)[1] if sampling.pack is None else sampling.pack
    room = longest(model, tokenizer, sampling.length)
    sequences = _packed(texts, tokenizer, room) if pack else _cut(texts, tokenizer, room)
    chosen = _spread(sequences, sampling.samples)
    _check_vocabulary(chosen, model, tokenizer)
    starts = range(0, len(chosen), sampling.batch_size)
    return [_batch(chosen[start : start + sampling.batch_size], model, tokenizer) for start in starts]


def _check_reads_text(model: nn.Module) -> None:
    wanted = getattr(model, "main_input_name", "input_ids")
    if wanted != "input_ids":
        raise ValueError(
            f"{type(model).__name__} takes {wanted}, not text; give ready batches, as in "
            f'calibration=[{{"{wanted}": tensor}}, ...].'
        )


def tokenizer_of(model: nn.Module) -> PreTrainedTokenizerBase:
    """That of the directory or repository which the model is from."""
    place = getattr(model, "name_or_path", "")
    how = "Pass tokenizer=AutoTokenizer.from_pretrained(...), or ready batches."
    if not place:
        raise ValueError(f"This {type(model).__name__} is from no directory, so its tokenizer is not known. {how}")
    try:
        return AutoTokenizer.from_pretrained(place)
    except Exception as error:  # of whatever kind: transformers has many for what is missing or torn
        why = str(error).strip().split("\n")[0]
        raise ValueError(f"{place} has no tokenizer that can be loaded ({why}). {how}") from error


def _enough(texts: Iterable[str], sampling: Sampling) -> list[str]:
    """As many texts as the samples are chosen among."""
    found, characters = [], 0
    for text in texts:
        found.append(text)
        characters += len(text)
        if characters >= SLACK * sampling.samples * sampling.length:
            break
    if not found:
        raise ValueError("The calibration data holds no text, only empty entries; give some sentences.")
    return found


def longest(model: nn.Module, tokenizer: PreTrainedTokenizerBase, length: int) -> int:
    """The length that is asked for, or the longest that model and tokenizer take."""
    positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    limits = [limit for limit in (positions, tokenizer.model_max_length) if isinstance(limit, int) and limit > 0]
    return min(length, *limits) if limits else length


def _cut(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int) -> list[list[int]]:
    """Each text as a sequence of its own, with special tokens."""
    return [ids for ids in tokenizer(list(texts), truncation=True, max_length=length)["input_ids"] if ids]


def _packed(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int) -> list[list[int]]:
    """The texts as one, in sequences of full length with special tokens; what is left at the end is dropped."""
    before, after = _around(tokenizer)
    ids = tokenizer("\n".join(texts), add_special_tokens=False, verbose=False)["input_ids"]
    room = max(length - len(before) - len(after), 1)
    whole = max(len(ids) // room, 1)
    return [before + ids[number * room : (number + 1) * room] + after for number in range(whole)]


def _around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens before and after a text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start], full[start + len(bare) :]
    return [], []


def _spread(sequences: list[list[int]], samples: int) -> list[list[int]]:
    """As many as wanted, from all over the text; a warning where there are fewer."""
    if len(sequences) < samples:
        logger.warning(
            "The calibration data gives %d sequences where samples=%d were asked for; all are used.",
            *(len(sequences), samples),
        )
        return sequences
    return [sequences[number * len(sequences) // samples] for number in range(samples)]


def _check_vocabulary(sequences: Sequence[list[int]], model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise for a tokenizer that is not the model's; transformers makes an empty one where a directory has none."""
    how = "Pass tokenizer=AutoTokenizer.from_pretrained(...) of the directory that the model is from."
    tokens = list(chain.from_iterable(sequences))
    unknown = tokens.count(tokenizer.unk_token_id) / len(tokens)
    if unknown > 0.5:
        raise ValueError(f"The tokenizer does not know {unknown:.0%} of what it gives; it is not the text's own. {how}")
    words = model.get_input_embeddings().num_embeddings
    if max(tokens) >= words:
        raise ValueError(f"The tokenizer gives token {max(tokens)} and the model has {words}; it is not its own. {how}")


def _batch(sequences: Sequence[list[int]], model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Batch:
    """Sequences padded on the right to the same length, with a mask that says so."""
    longest = max(map(len, sequences))
    padding = tokenizer.pad_token_id or 0
    ids = torch.tensor([ids + [padding] * (longest - len(ids)) for ids in sequences])
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in sequences])
    batch = {"input_ids": ids, "attention_mask": mask}
    if getattr(model.config, "is_encoder_decoder", False):
        batch |= {"decoder_input_ids": _shifted(ids, model), "decoder_attention_mask": mask}
    known = inspect.signature(model.forward).parameters
    return {name: tensor for name, tensor in batch.items() if name in known}


def _shifted(ids: Tensor, model: nn.Module) -> Tensor:
    """The same text as what a decoder has written so far: it begins one token earlier."""
    named = ("decoder_start_token_id", "bos_token_id", "pad_token_id")
    start = next((token for name in named if (token := getattr(model.config, name, None)) is not None), 0)
    return torch.cat([torch.full_like(ids[:, :1], start), ids[:, :-1]], dim=1)
