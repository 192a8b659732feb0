"""Statistics of the inputs of a block's layers, summed over the tokens of all calibration batches."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nxm_hf.layers.find import Layer
from nxm_hf.layers.shard_exchange import add_up, exchange, share_of
from nxm_hf.layers.sharding import Shards
from nxm_hf.pruners import Inputs

SAMPLE_SIZE = 4096  # the largest number of inputs in a sample, but for rounding up per batch
PANEL = 512  # rows of a Gram matrix that are summed at a time, each from the diagonal on


class GramSum:
    """Sums over the inputs of one layer: their Gram matrix, their sum, their number, and a sample of them.

    Args:
        width: The number of inputs.
        device: Where to sum.
        whole: Whether to sum the whole Gram matrix; otherwise only its diagonal.
    """

    def __init__(self, width: int, device: torch.device, whole: bool = True):
        # The matrix is valid on and above the diagonal.
        self._upper = torch.zeros((width, width) if whole else (width,), dtype=torch.float64, device=device)
        self.sum = torch.zeros(width, dtype=torch.float64, device=device)
        self.count = 0
        self.samples: list[Tensor] = []

    def add(self, x: Tensor, sample_size: int) -> None:
        """Add inputs to the sums.

        Args:
            x: Inputs, [tokens, in].
            sample_size: The largest number of them to copy into the sample, evenly spaced; 0 for none.
        """
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        if self._upper.dim() == 1:
            self._upper += x.square().sum(0)
        else:
            for begin in range(0, x.shape[1], PANEL):  # products in fp32, sums in fp64; half of the matrix is enough
                self._upper[begin : begin + PANEL, begin:] += x[:, begin : begin + PANEL].T @ x[:, begin:]
        self.sum += x.sum(0)
        self.count += len(x)
        if sample_size and len(x):
            self.samples.append(x[:: -(-len(x) // sample_size)].clone())

    @property
    def sample_rows(self) -> int:
        """Return the number of inputs in the sample."""
        return sum(map(len, self.samples))

    def add_up(self, shards: Shards, counts: Sequence[int], sample_rows: Sequence[int]) -> None:
        """Add up the sums of all processes. Every process calls this.

        Args:
            shards: The processes.
            counts: The number of inputs of each process, in the order of their shares.
            sample_rows: The number of inputs in the sample of each process.
        """
        add_up(shards, self._upper)
        add_up(shards, self.sum)
        self.count = sum(counts)
        if any(sample_rows):
            sample = torch.zeros(sum(sample_rows), len(self.sum), device=self.sum.device)
            begin = sum(sample_rows[: share_of(shards)])
            sample[begin : begin + self.sample_rows] = torch.cat([sample[:0], *self.samples])
            add_up(shards, sample)  # each row is that of one process
            self.samples = [sample]

    @property
    def gram(self) -> Tensor:
        """Return the full Gram matrix, [in, in]; zero off its diagonal if only that was summed.

        A whole matrix shares the memory of the sums. Copies of it would be the most memory that calibration takes.
        """
        upper = self._upper
        if upper.dim() == 1:
            return torch.diag(upper)
        for begin in range(0, len(upper), PANEL):
            end = begin + PANEL
            upper[end:, begin:end] = upper[begin:end, end:].T
            square = upper[begin:end, begin:end]
            square.copy_(square.triu() + square.triu(1).T)
        return upper

    def inputs(self, others: Sequence["GramSum"] = ()) -> Inputs:
        """Return the statistics of all inputs that were added.

        Args:
            others: Further sums of the same width, to be added to this one.

        Returns:
            The statistics; the sample is None if none was taken.
        """
        gram, total, count, samples = self.gram, self.sum, self.count, list(self.samples)
        for other in others:
            gram, total, count = gram + other.gram, total + other.sum, count + other.count
            samples += other.samples
        return Inputs(gram, total / max(count, 1), count, torch.cat(samples) if samples else None)


class InputStatistics:
    """Collects the inputs of the layers of one block. Layers called with the same tensor share one Gram matrix.

    Grouped convolutions and experts in one parameter are left out, because each group and each expert has inputs of its
    own.

    Args:
        layers: The layers of the block.
        batches: The number of calibration batches.
        with_sample: Whether to keep a sample of the inputs.
        two_stacks: Whether the model has an encoder and a decoder, each with its own attention mask.
        with_gram: Whether to sum whole Gram matrices; otherwise only their diagonals.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        batches: int,
        with_sample: bool = False,
        two_stacks: bool = False,
        with_gram: bool = True,
    ):
        self._experts = {layer.name for layer in layers if layer.holds_experts}
        self._layers = [layer for layer in layers if _conv_groups(layer.module) == 1 and not layer.holds_experts]
        self._sample_size = -(-SAMPLE_SIZE // batches) if with_sample else 0
        self._two_stacks, self._with_gram = two_stacks, with_gram
        self._masks: tuple[Tensor | None, Tensor | None] = (None, None)
        self._call_inputs: dict[tuple, tuple[Tensor, list[str]]] = {}  # tensor -> the layers that received it
        self._sums: dict[tuple[str, ...], GramSum] = {}  # by the layers that share it
        self._inputs: dict[tuple, Inputs] = {}
        self._with_padding: set[str] = set()  # layers whose padding could not be recognised
        self._counts_batch = True

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Record the inputs of the layers while the context is open."""
        with ExitStack() as stack:
            for layer in self._layers:
                stack.callback(layer.module.register_forward_pre_hook(self._hook(layer), with_kwargs=True).remove)
            yield

    def begin_batch(self, batch: Mapping[str, Any], counts: bool = True) -> None:
        """Use the attention masks of this batch for the inputs that follow.

        Args:
            batch: The arguments that the model is called with.
            counts: Whether to add its inputs to the sums.
        """
        self._counts_batch = counts
        self._masks = token_masks(batch, self._two_stacks)
        self._call_inputs.clear()

    def end_call(self) -> None:
        """Add the inputs that were recorded during one call of the block to the sums."""
        for x, names in self._call_inputs.values() if self._counts_batch else ():
            layer = next(layer for layer in self._layers if layer.name == names[0])
            mask = self._masks[1] if _reads_decoder_tokens(layer) else self._masks[0]
            rows, without_padding = token_rows(_channels_last(layer.module, x), mask)
            if not without_padding:
                self._with_padding |= set(names)
            if tuple(names) not in self._sums:
                self._sums[tuple(names)] = GramSum(rows.shape[-1], rows.device, self._with_gram)
            self._sums[tuple(names)].add(rows, self._sample_size)
        self._call_inputs.clear()

    def add_up(self, shards: Shards, device: torch.device) -> None:
        """Add up the sums of all processes. Every process calls this.

        Args:
            shards: The processes.
            device: Where to sum the inputs of layers that were not called in this process.
        """
        own = {names: (len(sums.sum), sums.count, sums.sample_rows) for names, sums in self._sums.items()}
        each = exchange(shards, (own, self._with_padding))
        self._with_padding = {name for _, names in each for name in names}
        summed = {}
        for names, (width, *_) in {names: size for sizes, _ in each for names, size in sizes.items()}.items():
            sizes = [sizes.get(names, (width, 0, 0)) for sizes, _ in each]
            summed[names] = self._sums.get(names) or GramSum(width, device, self._with_gram)
            summed[names].add_up(shards, [count for _, count, _ in sizes], [rows for *_, rows in sizes])
        self._sums = summed

    def sharing(self, name: str) -> tuple[tuple[str, ...], ...]:
        """Return the names of the layers of each sum that a layer's inputs are in; layers with equal ones share all.

        Args:
            name: The name of a layer of the block.
        """
        return tuple(names for names in self._sums if name in names)

    def inputs_of(self, name: str) -> Inputs | None:
        """Return the statistics of one layer, which those with the same inputs share; None if it was not called.

        Args:
            name: The name of a layer of the block.
        """
        keys = self.sharing(name)
        if keys and keys not in self._inputs:
            self._inputs[keys] = self._sums[keys[0]].inputs([self._sums[names] for names in keys[1:]])
        return self._inputs[keys] if keys else None

    def inputs(self) -> dict[str, Inputs]:
        """Return the statistics of each layer that was called; layers with the same inputs share one object."""
        each = {layer.name: self.inputs_of(layer.name) for layer in self._layers}
        return {name: inputs for name, inputs in each.items() if inputs is not None}

    def caveats(self, name: str) -> str:
        """Return why the calibration data says little about a layer.

        Args:
            name: The name of a layer of the block.

        Returns:
            The reasons, separated by semicolons; "" if there are none.
        """
        if name in self._experts:
            return "experts in one parameter, each with inputs of its own"
        if name not in {layer.name for layer in self._layers}:
            return "a convolution in groups, each with inputs of its own"
        if (inputs := self.inputs_of(name)) is None:
            return "never called with the calibration data"
        width, dead = len(inputs.mean), int((inputs.gram.diagonal() == 0).sum())
        reasons = {
            "padding could not be told from tokens": name in self._with_padding,
            f"{inputs.count} tokens for {width} inputs": inputs.count < width,
            f"{dead} of {width} inputs always zero": 0 < dead < width,
        }
        return "; ".join(reason for reason, applies in reasons.items() if applies)

    def _hook(self, layer: Layer) -> Callable[[nn.Module, tuple, dict], None]:
        def record(module: nn.Module, args: tuple, kwargs: dict) -> None:
            x = (args[0] if args else next(iter(kwargs.values()))).detach()
            key = (x.data_ptr(), x.shape, x.stride(), x.dtype, x._version)
            # The entry holds x, so that no other tensor takes its address during the call.
            self._call_inputs.setdefault(key, (x, []))[1].append(layer.name)

        return record


def token_masks(batch: Mapping[str, Any], two_stacks: bool) -> tuple[Tensor | None, Tensor | None]:
    """Return which positions of a batch are tokens rather than padding.

    Args:
        batch: The arguments that the model is called with.
        two_stacks: Whether the model has an encoder and a decoder.

    Returns:
        Two boolean masks [batch, length], of the encoder's (or only) and of the decoder's input. None means that all
        positions are tokens, or that the mask has another form.
    """
    encoder = decoder = batch.get("attention_mask")
    if two_stacks:
        decoder = batch.get("decoder_attention_mask")
        if decoder is None and "decoder_input_ids" not in batch and "labels" in batch:
            decoder = batch["labels"] != -100  # the decoder's input is made of the labels, and -100 is their padding
    return _two_dimensional(encoder), _two_dimensional(decoder)


def _two_dimensional(mask: Any) -> Tensor | None:
    """Return a 2-D attention mask as bool, or None for any other mask."""
    return mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 else None


def token_rows(x: Tensor, mask: Tensor | None) -> tuple[Tensor, bool]:
    """Return the inputs of a layer without padding.

    Args:
        x: Inputs, [..., in].
        mask: True for tokens, [batch, length]; None if all positions are tokens.

    Returns:
        The inputs of the tokens, [tokens, in], and whether padding is left out. If the mask fits no layout of `x`,
        all inputs are returned, and False.
    """
    rows = x.flatten(0, -2)
    if mask is None or mask.all():
        return rows, True
    for layout in (mask, mask.T):  # batch first, or tokens first
        if x.shape[:-1] in (layout.shape, (layout.numel(),)):
            return rows[layout.flatten().to(rows.device)], True
    return rows, False


def _reads_decoder_tokens(layer: Layer) -> bool:
    """Return whether a layer's inputs are tokens of the decoder; keys and values of cross-attention's are not."""
    return "decoder" in layer.name.split(".") and layer.role not in ("cross_key", "cross_value")


def _conv_groups(module: nn.Module) -> int:
    return module.groups if isinstance(module, nn.Conv1d) else 1


def _channels_last(module: nn.Module, x: Tensor) -> Tensor:
    """Return the inputs as [..., in]; a convolution receives [batch, in, length]."""
    return x.transpose(-1, -2) if isinstance(module, nn.Conv1d) else x
