"""Files of a saved adapter: the base model that it belongs to, and whether its delta is masked."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# The `init_lora_weights` of a masked adapter. PEFT alone has no initialization of this name. So it refuses to load the
# adapter, and does not compute with the unmasked delta.
MASKED = "masked_by_nxm_hf"


@dataclass(frozen=True)
class SavedAdapter:
    """Describe an adapter in a directory.

    Args:
        folder: The directory.
        config: The content of its `adapter_config.json`.
    """

    folder: Path
    config: dict[str, Any]

    @property
    def base(self) -> str:
        """Return the directory or Hub name of the base model.

        Raises:
            ValueError: If the adapter names none.
        """
        name = self.config.get("base_model_name_or_path")
        if not name:
            raise ValueError(
                f"{self.folder / ADAPTER_CONFIG} names no base model. Load the base with from_pretrained before it "
                'gets the adapter, or write its directory there as "base_model_name_or_path".'
            )
        return str(name)

    @property
    def is_masked(self) -> bool:
        """Return True if the delta of the adapter is restricted to the masks of the base."""
        return self.config.get("init_lora_weights") == MASKED


def read_adapter(folder: str | Path) -> SavedAdapter | None:
    """Read the config of an adapter.

    Args:
        folder: A directory.

    Returns:
        The adapter, or None if the directory holds none.

    Raises:
        ValueError: If its config cannot be read.
    """
    path = Path(folder) / ADAPTER_CONFIG
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}). Save the adapter again.") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no JSON object. Save the adapter again.")
    return SavedAdapter(Path(folder), config)


def check_adapter_weights(folder: str | Path) -> None:
    """Raise unless the weights of an adapter can be read.

    Args:
        folder: The directory of the adapter.

    Raises:
        FileNotFoundError: If there are none.
        ValueError: If the file is torn.
    """
    path = Path(folder) / ADAPTER_WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {ADAPTER_WEIGHTS}. Name a directory that PEFT saved.")
    try:
        with safe_open(path, "pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}). Save the adapter again.") from error
