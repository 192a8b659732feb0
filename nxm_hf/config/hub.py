"""Read JSON files of a directory or a Hub repository."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError


def read_json(place: str | Path, name: str, kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """A JSON file of a directory or a Hub repository; None where there is no such file."""
    path = Path(place) / name
    if not Path(place).is_dir():
        try:
            path = Path(hf_hub_download(str(place), name, **kwargs))
        except EntryNotFoundError:
            return None
        except (OSError, HFValidationError, HfHubHTTPError) as error:
            raise FileNotFoundError(f"{place} is neither a directory nor a Hub repository in reach: {error}") from error
    if not path.is_file():
        return None
    try:
        words = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}). Save the model again, or restore the file.") from error
    if not isinstance(words, dict):
        raise ValueError(f"{path} holds a {type(words).__name__}; it must be an object. Save the model again.")
    return words
