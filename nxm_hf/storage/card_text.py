"""The section of a model card: how the model was made, and how to load it, run it and train it further."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import transformers

from nxm_hf import pruners, recipes
from nxm_hf.config import SparsityRecord
from nxm_hf.config.hub import MODULES_FILE, model_folder, read_json
from nxm_hf.packing import read_packed_config, row_pattern
from nxm_hf.storage.adapter_files import SavedAdapter, read_adapter
from nxm_hf.storage.verify import Verification
from nxm_hf.storage.weight_files import WeightFiles, variant_to_read
from nxm_hf.text import markdown_code, markdown_text

HOME = "https://github.com/nxm-hf/nxm-hf"
SENTENCES, PEFT, TRANSFORMERS = "sentence-transformers", "peft", "transformers"
PLACE = "DIRECTORY_OR_NAME"  # of the model, in the examples
_PLAIN = "The file holds plain weights with zeros, and loading it needs no nxm_hf. `nxm verify` checks them."


@dataclass(frozen=True)
class SavedModel:
    """Describe the contents of a directory, as its files show them.

    Args:
        folder: The directory.
        architecture: The class of the model, such as "BertForSequenceClassification"; "" if it is not recorded.
        library: The library that loads it.
        adapter: The adapter, if it is one.
    """

    folder: Path
    architecture: str
    library: str
    adapter: SavedAdapter | None

    @classmethod
    def read(cls, folder: str | Path) -> "SavedModel":
        """Read the contents of a directory.

        Args:
            folder: The directory.
        """
        folder, adapter = Path(folder), read_adapter(folder)
        config = read_json(model_folder(folder), "config.json", {}) or {}
        names = config.get("architectures")
        architecture = str(names[0]) if isinstance(names, list) and names else ""
        library = PEFT if adapter else TRANSFORMERS
        if not adapter and ((folder / MODULES_FILE).is_file() or "sentence_transformers" in config):
            library = SENTENCES
        return cls(folder, architecture, library, adapter)

    @property
    def task(self) -> str | None:
        """Return the task of the model in the words of the Hub, or None if its class tells none."""
        if self.library == SENTENCES:
            return "sentence-similarity" if (self.folder / MODULES_FILE).is_file() else "text-ranking"
        from transformers.modelcard import TASK_MAPPING  # imports the Trainer, which must not load with a model

        mapping = cast(Mapping[str, Mapping[str, Any]], TASK_MAPPING)
        tasks = [task for task, classes in mapping.items() if self.architecture in _names(classes)]
        return tasks[-1] if tasks else None

    @property
    def auto_class(self) -> str:
        """Return the class of transformers to load the model with."""
        general = f"AutoModelFor{self.architecture.partition('For')[2]}"
        candidates = (general, self.architecture) if "For" in self.architecture else (self.architecture,)
        return next((name for name in candidates if name and hasattr(transformers, name)), "AutoModel")


def _names(classes: Mapping[str, Any]) -> set[str]:
    """Return the names of classes; a type of model has one or several."""
    return {name for value in classes.values() for name in ([value] if isinstance(value, str) else value)}


def section(record: SparsityRecord, verification: Verification, saved: SavedModel) -> str:
    """Return the section as Markdown.

    Args:
        record: The record of the model.
        verification: The verification of its weights.
        saved: The contents of its directory.
    """
    sparse = len(verification.layers)
    parts = [
        "## Sparsity",
        f"{sparse} layers of this model are sparse, with a density of {record.density:.4f}; pattern "
        f"{markdown_code(str(record.to_dict()['pattern']))}. {made_by(record)} Made with [nxm_hf]({HOME}) "
        f"{markdown_text(record.nxm_version)}.",
        "### How to load it",
        *_loading(saved),
        *_running(record, saved),
        "### How to train it further",
        "A plain `Trainer` fills the zeros again when it trains this model, and says nothing. Two lines keep them:",
        _code("from nxm_hf import NxMTrainer", "trainer = NxMTrainer(model=model, args=args, train_dataset=rows)"),
        "`NxMTrainer(model=...)` without `sparsity=` keeps the masks. In another Trainer, write "
        f'`callbacks=[NxMCallback(NxMConfig.from_pretrained("{PLACE}").for_finetuning())]`.',
        "### Density",
        _density_table(verification),
    ]
    return "\n\n".join(parts)


def made_by(record: SparsityRecord) -> str:
    """Return one sentence on the recipe or the method that made a model, with a link to its paper.

    Args:
        record: The record of the model.
    """
    if record.pruning:
        name, settings = str(record.pruning["method"]), record.pruning["settings"]
        described = pruners.describe(name) if name in pruners.names() else None
        return f"It was pruned without training by {_linked(name, described)}{_with(settings)}."
    name, settings = str(record.to_dict()["recipe"]), record.to_dict()["settings"]
    warmup, settle = record.config.phases
    described = recipes.describe(name) if name in recipes.names() else None
    phases = f", after dense training for {warmup:.4g} of the steps" if warmup else ""
    phases += f", with a frozen mask for the last {settle:.4g} of the steps" if settle else ""
    return f"It was trained by the recipe {_linked(name, described)}{_with(settings)}{phases}."


def _with(settings: Mapping[str, Any]) -> str:
    return f" with {markdown_code(str(dict(settings)))}" if settings else ""


def _linked(name: str, described: tuple[str, str] | None) -> str:
    """Return a name with its description, and a link to its paper."""
    if described is None:
        return markdown_code(name)
    sentence, (source, _, link) = described[0].rstrip("."), described[1].rpartition(", ")
    return f"`{name}` ({sentence}; " + (f"[{source}]({link}))" if link.startswith("https://") else f"{described[1]})")


def _code(*lines: str) -> str:
    return "\n".join(["```python", *lines, "```"])


def _loading(saved: SavedModel) -> list[str]:
    """Return how the weights are stored, loaded and verified."""
    if saved.adapter is not None:
        return _loading_adapter(saved.adapter)
    if saved.library == SENTENCES:
        name = "SentenceTransformer" if (saved.folder / MODULES_FILE).is_file() else "CrossEncoder"
        code = (f"from sentence_transformers import {name}", f'model = {name}("{PLACE}")')
    else:
        name = saved.auto_class
        variant = variant_to_read(saved.folder)
        which = "" if variant is None else f', variant="{variant}"'
        code = (f"from transformers import {name}", f'model = {name}.from_pretrained("{PLACE}"{which})')
    if read_packed_config(saved.folder) is None:
        return [_code(*code), _PLAIN]
    with WeightFiles(saved.folder) as files:
        packed, plain = files.packed_bytes()
    return [
        _code("import nxm_hf  # transformers then knows the packed weights", *code),
        f"The sparse layers are packed: {packed:,} bytes instead of {plain:,} ({packed / plain:.1%}). Write "
        "`import nxm_hf` before `from_pretrained`, or transformers reports weights of a wrong size. For a model that "
        "can be trained, pass `quantization_config=nxm_hf.NxMPackedConfig(dequantize=True)`. `nxm unpack DIR OUT` "
        "writes plain weights, which need no library, and `nxm verify` checks both.",
    ]


def _loading_adapter(adapter: SavedAdapter) -> list[str]:
    name = markdown_code(str(adapter.config.get("base_model_name_or_path")))
    base = f"These are layers of the base model {name}, which was frozen."
    if adapter.is_masked:
        return [
            f"{base} The adapter in this directory changes kept weights alone. `nxm_hf.load_adapter(base, DIR)` loads "
            "it, and `nxm merge BASE DIR OUT` writes the sum, which is sparse and computes the same."
        ]
    return [
        f"{base} The adapter in this directory stands beside them, and is dense. `PeftModel.from_pretrained` loads it, "
        "and `nxm merge BASE DIR OUT` makes one sparse model of both and says what that loses."
    ]


def _running(record: SparsityRecord, saved: SavedModel) -> list[str]:
    """Return how to compute with the zeros. Of an adapter, the merged model is what computes faster."""
    if saved.adapter is not None:
        return []
    lines = [
        "### How to run it sparse",
        _code("import nxm_hf", "print(nxm_hf.to_inference(model, batch=1, length=128))"),
        "`to_inference` times each layer on this device, and leaves it dense where that is faster. On the CPU it needs "
        "`pip install nxm-hf[fast]`. On an NVIDIA GPU since Ampere it uses the hardware's own 2:4 products: load in "
        f"float16 or bfloat16, and move the model there first. `nxm bench {PLACE}` shows the times.",
    ]
    if read_packed_config(saved.folder) is None and any(map(row_pattern, record.layers.values())):
        lines.append(f"`nxm pack {PLACE} OUT` stores the kept weights alone; 2:4 layers take about half of the bytes.")
    return lines


def _density_table(verification: Verification) -> str:
    """Return the density of each role, and below it of each layer, folded away."""
    rows = ["| role | layers | weights | density |", "|---|---|---|---|"]
    for role in dict.fromkeys(layer.role for layer in verification.layers):
        layers = [layer for layer in verification.layers if layer.role == role]
        total = sum(layer.numel for layer in layers)
        rows.append(f"| {role} | {len(layers)} | {total:,} | {sum(x.nonzeros for x in layers) / max(total, 1):.4f} |")
    each = [
        f"| {markdown_code(layer.name)} | {layer.role} | {layer.shape[0]}x{layer.shape[1]} | {layer.pattern} "
        f"| {layer.density:.4f} |"
        for layer in verification.layers
    ]
    folded = ["<details><summary>Each layer</summary>", "", "| layer | role | shape | pattern | density |"]
    return "\n".join([*rows, "", *folded, "|---|---|---|---|---|", *each, "", "</details>"])
