"""Read and write the files of a config: in a directory, in a Hub repository, or written by a user."""

import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

CONFIG_FILE = "nxm_config.json"
MODULES_FILE = "modules.json"  # of sentence-transformers: the folder of each module
CONFIG_SUFFIXES = (".json", ".yaml", ".yml")  # of files that a user writes
FILE_SUFFIXES = (".txt", ".csv", ".tsv", ".json", ".jsonl", ".parquet", ".safetensors", ".md", ".gz")  # not of names
MODEL_CONFIG_KEY = "nxm_config"  # key of the model's own config.json under which a copy of ours is kept


def looks_like_path(text: str) -> bool:
    """Return True if a text looks like a path, and not like a name on the Hub, by its form or its first folder.

    Args:
        text: The user's value of an argument that takes a path or a name on the Hub.

    Example:
        >>> [looks_like_path(text) for text in ("./bert", "out/a/b", "texts.txt", "glue", "nyu-mll/glue")]
        [True, True, True, False, False]
    """
    owner, _, name = text.partition(":")[0].rpartition("/")
    if re.fullmatch(r"(\w[\w.-]*/)?\w[\w.-]*(:[\w.-]+)?", text) is None or Path(name).suffix in FILE_SUFFIXES:
        return True
    return Path(owner).is_dir() if owner else "." in name


def hub_name(text: str) -> str | None:
    """Return a text if it can be the name of a repository on the Hub, and None if it is, or looks like, a path.

    Args:
        text: A name as a user wrote it.

    Example:
        >>> hub_name("google-bert/bert-base-uncased"), hub_name("./bert"), hub_name("")
        ('google-bert/bert-base-uncased', None, None)
    """
    name = text.partition(":")[0]
    return None if looks_like_path(text) or Path(name).exists() else name


def read_payload(directory_or_repo: str | Path, kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """Read the sparsity record of a saved model.

    Args:
        directory_or_repo: A directory, or the name of a Hub repository.
        kwargs: Arguments of `hf_hub_download`.

    Returns:
        The content of `nxm_config.json`, or else the copy inside `config.json`, or None if there is neither.

    Raises:
        ValueError: If a file is not a JSON object.
        FileNotFoundError: If the repository cannot be reached.
    """
    payload = read_json(directory_or_repo, CONFIG_FILE, kwargs)
    if payload:
        return payload
    folder = model_folder(directory_or_repo) if Path(directory_or_repo).is_dir() else directory_or_repo
    model_config = read_json(folder, "config.json", kwargs) or {}
    return model_config.get(MODEL_CONFIG_KEY) or None


def model_folder(directory: str | Path) -> Path:
    """Find the Transformers model in a directory that sentence-transformers wrote: the directory or a folder in it.

    Args:
        directory: The directory of a saved model, of any library.

    Returns:
        The first folder in `modules.json` whose `config.json` names a `model_type`; else the directory.
    """
    root = Path(directory)
    modules = _json_or_none(root / MODULES_FILE)
    for module in modules if isinstance(modules, list) else []:
        folder = root / str(module.get("path", "")) if isinstance(module, dict) else root
        config = _json_or_none(folder / "config.json")
        inside = folder.resolve().is_relative_to(root.resolve())
        if inside and isinstance(config, dict) and "model_type" in config:
            return folder
    return root


def _json_or_none(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None  # do not wait for a pipe
    except (OSError, ValueError, RecursionError):
        return None


def read_json(directory_or_repo: str | Path, name: str, kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """Read one JSON file of a directory or a Hub repository.

    Args:
        directory_or_repo: A directory, or the name of a Hub repository.
        name: Name of the file.
        kwargs: Arguments of `hf_hub_download`.

    Returns:
        The JSON object, or None if there is no such file.

    Raises:
        ValueError: If the file is not a JSON object.
        FileNotFoundError: If the repository cannot be reached.
    """
    path = Path(directory_or_repo) / name
    if not Path(directory_or_repo).is_dir():
        try:
            path = Path(hf_hub_download(str(directory_or_repo), name, **kwargs))
        except EntryNotFoundError:
            return None
        except (OSError, HFValidationError, HfHubHTTPError) as error:
            raise FileNotFoundError(
                f"{directory_or_repo} is neither a directory nor a Hub repository that can be reached: {error}"
            ) from error
    if not path.is_file():
        return None
    try:
        payload = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}). Save the model again, or restore the file.") from error
    if not isinstance(payload, dict):
        raise ValueError(f"{path} holds a {type(payload).__name__}; it must hold a JSON object. Save the model again.")
    return payload


def write_json(folder: Path, name: str, payload: dict[str, Any]) -> None:
    """Write one JSON file, and create the directory if needed.

    Args:
        folder: The directory.
        name: Name of the file.
        payload: Its content.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / name, json.dumps(payload, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a small file atomically. If the process is killed or the disk is full, the old file stays, or no file.

    Args:
        path: The file.
        text: Its content.
    """
    temporary = path.with_name(f".{path.name[:200]}.writing")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


class _YamlLoader(yaml.SafeLoader):
    """Read 2:4 as a text, and 1e-4 as a number: the reader of PyYAML takes them for 124 and for a text."""


_YamlLoader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in pairs if tag.rpartition(":")[2] not in ("int", "float")]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_YamlLoader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?\d+$"), [*"-+0123456789"])
_YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?$"), [*"-+.0123456789"]
)


def read_config_file(path: Path) -> dict[str, Any]:
    """Read a config that a user wrote as a JSON or YAML file.

    Args:
        path: The file.

    Returns:
        The fields of a config, by name.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is a directory, has another suffix, or does not hold a mapping.
    """
    if path.is_dir():
        raise ValueError(
            f"{path} is a directory. Write sparsity=NxMConfig.from_pretrained({str(path)!r}) for the config of "
            "the model in it. To train that model with its masks, leave sparsity out."
        )
    if not path.is_file():
        raise FileNotFoundError(f"There is no config file {path}. Write the path of a JSON or YAML file.")
    if path.suffix not in CONFIG_SUFFIXES:
        raise ValueError(f"{path} is no config file; its name must end in {', '.join(CONFIG_SUFFIXES)}. Rename it.")
    text = path.read_text(encoding="utf-8")
    try:
        payload = json.loads(text) if path.suffix == ".json" else yaml.load(text, _YamlLoader)
    except (ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read ({reason}). Correct the file.") from error
    if not isinstance(payload, dict):
        held = "is empty" if payload is None else f"holds a {type(payload).__name__}"
        raise ValueError(f'{path} {held}; it must be a mapping such as "recipe: admm".')
    return payload
