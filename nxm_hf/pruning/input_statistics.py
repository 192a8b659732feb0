"""Gathering: what enters the layers of a block, summed over the tokens of all batches."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nxm_hf.layers.find import Layer
from nxm_hf.pruners import Inputs

SAMPLE = 4096  # how many inputs a sample holds, at most
PANEL = 512  # rows of a Gram matrix that are summed at a time, each from the diagonal on


class Sums:
    """Sums over the inputs of one place: their Gram matrix, their sum, how many there were, and a sample of them."""

    def __init__(self, width: int, device: torch.device):
        self._upper = torch.zeros(width, width, dtype=torch.float64, device=device)  # half of the Gram matrix
        self.sum = torch.zeros(width, dtype=torch.float64, device=device)
        self.count = 0
        self.sampled: list[Tensor] = []

    def add(self, x: Tensor, share: int) -> None:
        """Add inputs [tokens, in], and up to `share` of them, from all over, to the sample."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        for begin in range(0, x.shape[1], PANEL):  # each product in fp32, their sum in fp64
            self._upper[begin : begin + PANEL, begin:] += x[:, begin : begin + PANEL].T @ x[:, begin:]
        self.sum += x.sum(0)
        self.count += len(x)
        if share and len(x):
            self.sampled.append(x[:: -(-len(x) // share)].clone())

    @property
    def gram(self) -> Tensor:
        """The whole of it."""
        return self._upper.triu() + self._upper.triu(1).T

    def inputs(self, others: Sequence["Sums"] = ()) -> Inputs:
        """All that was added, here and to others, which are sums of the same width."""
        gram, total, count, sampled = self.gram, self.sum, self.count, list(self.sampled)
        for other in others:
            gram, total, count = gram + other.gram, total + other.sum, count + other.count
            sampled += other.sampled
        return Inputs(gram, total / max(count, 1), count, torch.cat(sampled) if sampled else None)


class Gathering:
    """What enters these layers of a block. Layers that are called with the same tensor share one Gram matrix."""

    def __init__(self, layers: Sequence[Layer], batches: int, with_sample: bool = False, two_stacks: bool = False):
        self._layers = [layer for layer in layers if _groups(layer.module) == 1]
        self._share = -(-SAMPLE // batches) if with_sample else 0
        self._seen: dict[tuple, tuple[Tensor, list[str]]] = {}  # of one call of the block
        self._sums: dict[tuple[str, ...], Sums] = {}
        self._two_stacks = two_stacks  # an encoder and a decoder, each with tokens of its own
        self._masks: tuple[Tensor | None, Tensor | None] = (None, None)
        self._made: dict[tuple, Inputs] = {}
        self._padded: set[str] = set()  # layers whose inputs could not be told from padding

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Meanwhile the layers say what they are called with."""
        with ExitStack() as stack:
            for layer in self._layers:
                stack.callback(layer.module.register_forward_pre_hook(self._hook(layer), with_kwargs=True).remove)
            yield

    def begin(self, batch: Mapping[str, Any]) -> None:
        """The next inputs are of this batch."""
        self._masks = masks_of(batch, self._two_stacks)
        self._seen.clear()

    def end_call(self) -> None:
        """A call of the block is over: add up what was seen in it."""
        for x, names in self._seen.values():
            layer = next(layer for layer in self._layers if layer.name == names[0])
            rows, told_apart = valid_rows(_tokens_first(layer.module, x), self._masks[_reads_decoder(layer)])
            self._padded |= set() if told_apart else set(names)
            if tuple(names) not in self._sums:
                self._sums[tuple(names)] = Sums(rows.shape[-1], rows.device)
            self._sums[tuple(names)].add(rows, self._share)
        self._seen.clear()

    def inputs(self) -> dict[str, Inputs]:
        """What entered each layer that was called; one object for all that share it."""
        found = {}
        for layer in self._layers:
            mine = tuple(names for names in self._sums if layer.name in names)
            if mine and mine not in self._made:
                self._made[mine] = self._sums[mine[0]].inputs([self._sums[names] for names in mine[1:]])
            if mine:
                found[layer.name] = self._made[mine]
        return found

    def doubt(self, name: str) -> str:
        """What makes the calibration data say little of a layer, in words; nothing where all is well."""
        if name not in {layer.name for layer in self._layers}:
            return "a convolution in groups, each with inputs of its own"
        if (inputs := self.inputs().get(name)) is None:
            return "never called with the calibration data"
        width, dead = len(inputs.mean), int((inputs.gram.diagonal() == 0).sum())
        doubts = {
            "padding could not be told from tokens": name in self._padded,
            f"{inputs.count} tokens for {width} inputs": inputs.count < width,
            f"{dead} of {width} inputs always zero": 0 < dead < width,
        }
        return "; ".join(doubt for doubt, holds in doubts.items() if holds)

    def _hook(self, layer: Layer):
        def see(module: nn.Module, args: tuple, kwargs: dict) -> None:
            x = (args[0] if args else next(iter(kwargs.values()))).detach()
            key = (x.data_ptr(), x.shape, x.stride(), x.dtype, x._version)
            self._seen.setdefault(key, (x, []))[1].append(layer.name)  # holding x keeps its address its own

        return see


def masks_of(batch: Mapping[str, Any], two_stacks: bool) -> tuple[Tensor | None, Tensor | None]:
    """True where a token is none of padding: of what the model reads, and of what its decoder reads."""
    read = written = batch.get("attention_mask")
    if two_stacks:
        written = batch.get("decoder_attention_mask")
        if written is None and "decoder_input_ids" not in batch and "labels" in batch:
            written = batch["labels"] != -100
    return _as_bool(read), _as_bool(written)


def _as_bool(mask: Any) -> Tensor | None:
    """A mask of tokens; one of pairs of tokens, say, is none."""
    return mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 else None


def valid_rows(x: Tensor, mask: Tensor | None) -> tuple[Tensor, bool]:
    """The rows [tokens, in] of inputs [..., in] that are no padding, and whether padding could be told."""
    rows = x.flatten(0, -2)
    if mask is None or mask.all():
        return rows, True
    for laid_out in (mask, mask.T):  # batch first, or tokens first
        if x.shape[:-1] in (laid_out.shape, (laid_out.numel(),)):
            return rows[laid_out.flatten().to(rows.device)], True
    return rows, False


def _reads_decoder(layer: Layer) -> bool:
    """Whether what enters a layer are tokens of the decoder; its cross-attention looks at those of the encoder."""
    return "decoder" in layer.name.split(".") and layer.role not in ("cross_key", "cross_value")


def _groups(module: nn.Module) -> int:
    return module.groups if isinstance(module, nn.Conv1d) else 1


def _tokens_first(module: nn.Module, x: Tensor) -> Tensor:
    """The inputs as [..., in]: a convolution has them in the middle."""
    return x.transpose(-1, -2) if isinstance(module, nn.Conv1d) else x
