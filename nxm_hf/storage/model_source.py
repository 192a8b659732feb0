"""Model directories by name: a directory here, or a model on the Hub, which is downloaded."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from nxm_hf.config.hub import looks_like_path

MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.md")  # no other weights, no code


def model_directory(name: str) -> str:
    """Return the directory of a model. A model on the Hub is downloaded first.

    Args:
        name: A directory, or the name of a model on the Hub. A text that can only be a path is not looked for there.

    Returns:
        The directory.

    Raises:
        FileNotFoundError: If there is no such directory, and no such model in reach.
    """
    if Path(name).exists() or looks_like_path(name):
        return existing_directory(name)
    try:
        return snapshot_download(name, allow_patterns=list(MODEL_FILES))
    except (OSError, HFValidationError, HfHubHTTPError) as error:
        reason = str(error).strip().split("\n")[0]
        raise FileNotFoundError(
            f"{name} does not exist here, and it cannot be had from the Hub: {reason.rstrip('.')}. "
            "Name a directory that save_pretrained wrote."
        ) from error


def existing_directory(name: str) -> str:
    """Return a path that is a directory.

    Args:
        name: The path.

    Returns:
        The same path.

    Raises:
        FileNotFoundError: If it is no directory.
    """
    if not Path(name).is_dir():
        problem = "is a file; a directory is needed" if Path(name).exists() else "does not exist"
        raise FileNotFoundError(f"{name} {problem}.")
    return name
