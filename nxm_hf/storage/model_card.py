"""The model card: the section that describes sparsity."""

from pathlib import Path

from huggingface_hub import ModelCard

from nxm_hf.config.config import NxMConfig
from nxm_hf.layers.plan import Plan
from nxm_hf.storage.verify import verify_targets

TAG = "nxm-hf"


_BEGIN, _END = "<!-- nxm_hf: begin -->", "<!-- nxm_hf: end -->"


def write_card(folder: str | Path, config: NxMConfig, plan: Plan) -> None:
    """Write our section and tag into README.md, which is made if there is none."""
    path = Path(folder) / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else f"---\ntags:\n- {TAG}\n---\n\n# {path.parent.name}\n"
    before, _, rest = text.partition(_BEGIN)
    after = rest.partition(_END)[2]
    card = ModelCard(f"{before.rstrip()}\n\n{_section(config, plan)}\n{after.lstrip()}", ignore_metadata_errors=True)
    card.data.tags = [*dict.fromkeys([*(card.data.tags or []), TAG])]
    path.write_text(str(card), encoding="utf-8")


def _section(config: NxMConfig, plan: Plan) -> str:
    report = verify_targets(plan.targets)
    words = config.to_dict()
    warmup, settle = config.phases
    made = f"recipe `{words['recipe']}` with `{words['settings']}`, warmup {warmup}, settle {settle}"
    if config.pruning:
        made = f"pruned without training by `{config.pruning['method']}` with `{config.pruning['settings']}`"
    rows = [
        f"| `{x.name}` | {x.role} | {x.shape[0]}x{x.shape[1]} | {x.pattern} | {x.density:.4f} |" for x in report.layers
    ]
    return "\n".join(
        [
            _BEGIN,
            "## Sparsity",
            "",
            f"{len(report.layers)} layers of this model are sparse, with a density of {report.density:.4f}; pattern "
            f"`{words['pattern']}`, {made}. Made with nxm_hf {config.nxm_version}. The file holds plain weights with "
            "zeros: `from_pretrained` needs nothing else, and `nxm verify` checks them.",
            "",
            "| layer | role | shape | pattern | density |",
            "|---|---|---|---|---|",
            *rows,
            _END,
        ]
    )
