"""SparsityRecord: the description that is saved with a sparse model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nxm_hf._version import __version__
from nxm_hf.config.config import NxMConfig
from nxm_hf.config.hub import CONFIG_FILE, MODEL_CONFIG_KEY, read_payload, write_json

_LONGEST = 1000  # characters of a message about a record, whose keys and values may be a stranger's


@dataclass(frozen=True)
class SparsityRecord:
    """Describe a sparse model: the config it was made with, and what came out.

    `nxm_config.json` holds a record, and the model's own `config.json` holds a copy under "nxm_config".

    Args:
        config: The config that it was made with.
        layers: Pattern of each sparse layer, by the layer's name.
        density: Fraction of the entries of these layers that are not zero.
        pruning: Method, settings and number of calibration tokens, if `prune` made the model without training.
        nxm_version: Version of nxm_hf that made the model.
    """

    config: NxMConfig
    layers: dict[str, str]
    density: float
    pruning: dict[str, Any] | None = None
    nxm_version: str = __version__

    def to_dict(self) -> dict[str, Any]:
        """Return the record as a dict that fits a JSON file."""
        payload = {**self.config.to_dict(), "layers": self.layers, "density": self.density}
        payload.pop("nxm_version")  # it stands last
        if self.pruning is not None:
            payload["pruning"] = self.pruning
        return {**payload, "nxm_version": self.nxm_version}

    @classmethod
    def from_dict(cls, payload: dict[str, Any]) -> "SparsityRecord | None":
        """Make a record from a dict.

        Args:
            payload: What `to_dict` returned.

        Returns:
            The record, or None if the dict is a config alone, which names no layers.

        Raises:
            ValueError: If a key is unknown, a value is of the wrong type, or `layers` is not a dict of strings.
        """
        try:
            config = NxMConfig.from_dict(payload)
        except (TypeError, AttributeError, LookupError, ArithmeticError, RecursionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"The record of a sparse model cannot be read ({reason}). Save the model again."
            ) from error
        except ValueError as error:
            if len(text := str(error)) <= _LONGEST:
                raise
            raise ValueError(f"{text[:_LONGEST]}... Save the model again.") from error
        layers = payload.get("layers")
        if layers is None:
            return None
        if not (isinstance(layers, dict) and all(isinstance(text, str) for text in layers.values())):
            example = '{"layer.0.query": "2:4"}'
            raise ValueError(f"layers must be like {example}; got {str(layers)[:60]}. Save the model again.")
        values = payload.get("density", 0.0), payload.get("pruning"), payload.get("nxm_version", "unknown")
        _check_values(layers, *values)
        return cls(config, layers, *values)

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write `nxm_config.json` into a directory.

        Args:
            save_directory: The directory; it is created if needed.
        """
        write_json(Path(save_directory), CONFIG_FILE, self.to_dict())

    @classmethod
    def from_pretrained(cls, directory_or_repo: str | Path, **kwargs: Any) -> "SparsityRecord":
        """Read the record of a saved model.

        Args:
            directory_or_repo: A directory, or the name of a Hub repository.
            **kwargs: Arguments of `huggingface_hub.hf_hub_download`, such as `revision`.

        Returns:
            The record.

        Raises:
            FileNotFoundError: If the model has no record of being sparse.
        """
        payload = read_payload(directory_or_repo, kwargs)
        record = None if payload is None else cls.from_dict(payload)
        if record is None:
            raise FileNotFoundError(
                f"{directory_or_repo} has no record of being sparse: it holds no {CONFIG_FILE} that names layers, and "
                f"no {MODEL_CONFIG_KEY!r} in its config.json. A directory that NxMTrainer.save_model wrote has both."
            )
        return record


def _check_values(layers: dict[str, str], density: Any, pruning: Any, version: Any) -> None:
    """Raise unless the values of a record are of the types that its readers take."""
    if odd := [name for name in layers if not name.isprintable()]:
        raise ValueError(f"layers names {odd[0][:60]!r}, which is no name of a layer. Save the model again.")
    if isinstance(density, bool) or not (isinstance(density, int | float) and 0 <= density <= 1):
        raise ValueError(f"density must be a number such as 0.5; got {str(density)[:60]!r}. Save the model again.")
    if pruning is not None and not (isinstance(pruning, dict) and "method" in pruning):
        example = '{"method": "alps", "settings": {}}'
        raise ValueError(f"pruning must be like {example}; got {str(pruning)[:60]!r}. Save the model again.")
    if not isinstance(version, str):
        raise ValueError(f"nxm_version must be a string; got {str(version)[:60]!r}. Save the model again.")
