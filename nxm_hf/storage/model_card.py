"""The model card: a section in README.md that describes the sparsity of a model."""

from pathlib import Path

from huggingface_hub import ModelCard

from nxm_hf.config import SparsityRecord
from nxm_hf.storage.verify import Verification

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
    text = path.read_text(encoding="utf-8") if path.is_file() else f"---\ntags:\n- {TAG}\n---\n\n# {path.parent.name}\n"
    before, _, rest = text.partition(_BEGIN)
    after = rest.partition(_END)[2]
    section = _section(record, verification)
    card = ModelCard(f"{before.rstrip()}\n\n{section}\n{after.lstrip()}", ignore_metadata_errors=True)
    tags = card.data.get("tags") or []
    card.data["tags"] = [*dict.fromkeys([*tags, TAG])]
    path.write_text(str(card), encoding="utf-8")


def _section(record: SparsityRecord, verification: Verification) -> str:
    payload = record.to_dict()
    warmup, settle = record.config.phases
    made = f"recipe `{payload['recipe']}` with `{payload['settings']}`, warmup {warmup}, settle {settle}"
    if record.pruning:
        made = f"pruned without training by `{record.pruning['method']}` with `{record.pruning['settings']}`"
    rows = [
        f"| `{layer.name}` | {layer.role} | {layer.shape[0]}x{layer.shape[1]} | {layer.pattern} | {layer.density:.4f} |"
        for layer in verification.layers
    ]
    return "\n".join(
        [
            _BEGIN,
            "## Sparsity",
            "",
            f"{len(verification.layers)} layers of this model are sparse, with a density of {record.density:.4f}; "
            f"pattern `{payload['pattern']}`, {made}. Made with nxm_hf {record.nxm_version}. The file holds plain "
            "weights with zeros: `from_pretrained` needs nothing else, and `nxm verify` checks them.",
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
