"""The model card: a section in README.md that describes the sparsity of a model."""

from pathlib import Path

from huggingface_hub import ModelCard

from nxm_hf.config import SparsityRecord
from nxm_hf.config.hub import write_text
from nxm_hf.packing import read_packed_config
from nxm_hf.storage.adapter_files import SavedAdapter, read_adapter
from nxm_hf.storage.verify import Verification
from nxm_hf.storage.weight_files import WeightFiles
from nxm_hf.text import markdown_code, markdown_text

TAG = "nxm-hf"
_BEGIN = "<!-- nxm_hf: begin -->"
_END = "<!-- nxm_hf: end -->"


def write_card(folder: str | Path, record: SparsityRecord, verification: Verification) -> None:
    """Write the section and the tag into README.md. The file is created if there is none.

    Args:
        folder: Directory of the model.
        record: What the model says of itself.
        verification: What was found in its weights.
    """
    path = Path(folder) / "README.md"
    title = markdown_text(path.parent.name)
    text = path.read_text(encoding="utf-8") if path.is_file() else f"---\ntags:\n- {TAG}\n---\n\n# {title}\n"
    before, _, rest = text.partition(_BEGIN)
    after = rest.partition(_END)[2]
    section = _section(record, verification, _loading(folder))
    card = ModelCard(f"{before.rstrip()}\n\n{section}\n{after.lstrip()}", ignore_metadata_errors=True)
    tags = card.data.get("tags") or []
    card.data["tags"] = [*dict.fromkeys([*tags, TAG])]
    write_text(path, str(card))


def _loading(folder: str | Path) -> str:
    """Say how the weights are stored and loaded, and what checks them."""
    if (adapter := read_adapter(folder)) is not None:
        return _loading_adapter(adapter)
    if read_packed_config(folder) is None:
        return "The file holds plain weights with zeros: `from_pretrained` needs no more, and `nxm verify` checks them."
    with WeightFiles(folder) as files:
        packed, plain = files.packed_bytes()
    return (
        f"The sparse layers are packed: {packed:,} bytes instead of {plain:,} ({packed / plain:.1%}). Write "
        "`import nxm_hf` before `from_pretrained`, or transformers reports weights of a wrong size. For a model that "
        "can be trained, pass `quantization_config=nxm_hf.NxMPackedConfig(dequantize=True)`. `nxm unpack DIR OUT` "
        "writes plain weights, which need no library, and `nxm verify` checks both."
    )


def _loading_adapter(adapter: SavedAdapter) -> str:
    name = markdown_code(str(adapter.config.get("base_model_name_or_path")))
    base = f"These are layers of the base model {name}, which was frozen."
    if adapter.is_masked:
        return (
            f"{base} The adapter in this directory changes kept weights alone. `nxm_hf.load_adapter(base, DIR)` loads "
            "it, and `nxm merge BASE DIR OUT` writes the sum, which is sparse and computes the same."
        )
    return (
        f"{base} The adapter in this directory stands beside them, and is dense. `PeftModel.from_pretrained` loads it, "
        "and `nxm merge BASE DIR OUT` makes one sparse model of both and says what that loses."
    )


def _section(record: SparsityRecord, verification: Verification, loading: str) -> str:
    payload = record.to_dict()
    warmup, settle = record.config.phases
    recipe, settings = markdown_code(str(payload["recipe"])), markdown_code(str(payload["settings"]))
    made = f"recipe {recipe} with {settings}, warmup {warmup}, settle {settle}"
    if record.pruning:
        method, settings = (markdown_code(str(record.pruning.get(key, {}))) for key in ("method", "settings"))
        made = f"pruned without training by {method} with {settings}"
    rows = [
        f"| {markdown_code(layer.name)} | {layer.role} | {layer.shape[0]}x{layer.shape[1]} | {layer.pattern} "
        f"| {layer.density:.4f} |"
        for layer in verification.layers
    ]
    return "\n".join(
        [
            _BEGIN,
            "## Sparsity",
            "",
            f"{len(verification.layers)} layers of this model are sparse, with a density of {record.density:.4f}; "
            f"pattern {markdown_code(str(payload['pattern']))}, {made}. Made with nxm_hf "
            f"{markdown_text(record.nxm_version)}. {loading}",
            "",
            "A plain `Trainer` fills the zeros again when it trains this model. `NxMTrainer(model=...)` of "
            "[nxm_hf](https://github.com/nxm-hf/nxm-hf) keeps them.",
            "",
            "| layer | role | shape | pattern | density |",
            "|---|---|---|---|---|",
            *rows,
            _END,
        ]
    )
