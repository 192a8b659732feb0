"""CardFacts: facts for a model's card that are not in its files, such as the results of evaluations."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from nxm_hf.config.hub import hub_name
from nxm_hf.layers.modules import unwrap

_PREFIX = "eval_"
_NOT_QUALITY = ("runtime", "_per_second", "epoch", "_preparation_time")  # endings of keys that do not measure a model
_NO_NAME = ("csv", "json", "pandas", "parquet", "text", "generator", "arrow", "imagefolder", "audiofolder")  # builders
_HUB_FILE = re.compile(r"hf://datasets/([^@]+)@")


@dataclass(frozen=True)
class DataFacts:
    """Describe a dataset.

    Args:
        name: Its name on the Hub; None if it is not known to come from there.
        config: The name of its configuration.
        split: The name of its split.
        rows: The number of its rows; None for a stream.
    """

    name: str | None = None
    config: str | None = None
    split: str | None = None
    rows: int | None = None

    @classmethod
    def of(cls, dataset: Any) -> "DataFacts":
        """Describe a dataset of any class; those of `datasets` know where they come from.

        Args:
            dataset: The dataset, or None.
        """
        try:
            rows = len(dataset)
        except TypeError:
            rows = None
        if (info := getattr(dataset, "info", None)) is None or not hasattr(info, "builder_name"):
            return cls(rows=rows)
        files = (_HUB_FILE.match(str(url)) for url in getattr(info, "download_checksums", None) or ())
        name = next((found[1] for found in files if found), info.builder_name)
        split = getattr(dataset, "split", None)
        known = name is not None and name not in _NO_NAME
        return cls(
            name=name if known else None,
            config=info.config_name if known else None,
            split=None if split is None else str(split),
            rows=rows,
        )


@dataclass(frozen=True)
class CardFacts:
    """Describe where the weights of a model come from.

    Args:
        base_model: The name on the Hub of the model that they began as.
        datasets: Names on the Hub of the data that they were made with.
        evaluations: Metrics of these weights, by the data that they were evaluated on.
        new_weights: Whether the results in an earlier card belong to other weights.
    """

    base_model: str | None = None
    datasets: tuple[str, ...] = ()
    evaluations: Mapping[DataFacts, Mapping[str, float]] = field(default_factory=dict)
    new_weights: bool = False


def base_model_of(model: nn.Module) -> str | None:
    """Return the name on the Hub that a model was loaded from, or None.

    Args:
        model: The model.
    """
    return hub_name(str(getattr(getattr(unwrap(model), "config", None), "_name_or_path", "")))


def metrics_of(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics in a record of an evaluation, without their prefix, and without those of speed.

    Args:
        record: What `Trainer.evaluate` returned or logged.

    Example:
        >>> metrics_of({"eval_accuracy": 0.5, "eval_runtime": 2.0, "epoch": 1.0})
        {'accuracy': 0.5}
    """
    return {
        key.removeprefix(_PREFIX): float(value)
        for key, value in record.items()
        if key.startswith(_PREFIX) and not key.endswith(_NOT_QUALITY) and isinstance(value, (int, float))
    }
