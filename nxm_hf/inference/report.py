"""The report of `to_inference`: for each layer the chosen backend, and the reason."""

from dataclasses import dataclass

from nxm_hf.text import table


@dataclass(frozen=True)
class ConvertedLayer:
    """Describe how one layer was converted.

    Args:
        name: The name of its module.
        shape: The shape (out, in) of its weight.
        pattern: The pattern that its weight holds, or "dense".
        backend: The backend that computes it now, or "dense".
        speedups: The measured speed-up over the dense layer, by tokens. It is empty where nothing was measured.
        reason: Why it was replaced or not.
    """

    name: str
    shape: tuple[int, int]
    pattern: str
    backend: str
    speedups: dict[int, float]
    reason: str


@dataclass(frozen=True)
class InferenceReport:
    """Describe how a model was converted. It prints as a table with a row for layers of a kind.

    Args:
        layers: The linear layers of the model.
        tokens: The numbers of tokens that were asked for.
        threads: The threads of torch while layers were timed.
        bytes_before: The bytes of all weights before.
        bytes_after: The bytes of all weights now.
    """

    layers: tuple[ConvertedLayer, ...]
    tokens: tuple[int, ...]
    threads: int
    bytes_before: int
    bytes_after: int

    @property
    def converted(self) -> tuple[ConvertedLayer, ...]:
        """Return the layers that compute with packed weights now."""
        return tuple(layer for layer in self.layers if layer.backend != "dense")

    def __str__(self) -> str:
        kinds: dict[tuple[str, ...], int] = {}
        for layer in self.layers:
            speedups = [f"{layer.speedups[count]:.2f}x" if layer.speedups else "" for count in self.tokens]
            size = f"{layer.shape[0]}x{layer.shape[1]}"
            row = (size, layer.pattern, layer.backend, *speedups, layer.reason)
            kinds[row] = kinds.get(row, 0) + 1
        tokens = [f"{count} tokens" for count in self.tokens]
        header = ("layers", "shape", "pattern", "computed by", *tokens, "why")
        rows = [(str(count), *row) for row, count in kinds.items()]
        before, after = (f"{size / 2**20:.1f} MiB" for size in (self.bytes_before, self.bytes_after))
        return (
            f"{table(header, rows)}\n{len(self.converted)} of {len(self.layers)} linear layers compute with packed "
            f"weights. Weights take {after}, and took {before}. Timed with {self.threads} threads, over dense layers."
        )
