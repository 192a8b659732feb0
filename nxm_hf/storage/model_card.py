"""The model card: README.md with metadata for the Hub, and a section that describes the sparsity of a model."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard

from nxm_hf.config import SparsityRecord
from nxm_hf.config.hub import hub_name, write_text
from nxm_hf.storage.card_facts import CardFacts
from nxm_hf.storage.card_text import HOME, SavedModel, section
from nxm_hf.storage.verify import Verification
from nxm_hf.text import markdown_text

TAG = "nxm-hf"
_BEGIN = "<!-- nxm_hf: begin -->"
_END = "<!-- nxm_hf: end -->"
_SOURCE = "nxm_hf"  # of our results among those of a card
_UNKNOWN = "unknown"


def write_card(
    folder: str | Path, record: SparsityRecord, verification: Verification, facts: CardFacts | None = None
) -> None:
    """Write the metadata and the section into README.md. The file is created if there is none.

    The text of a user stays, and so does metadata that is there already. Results of an earlier evaluation of ours are
    replaced, because they are of earlier weights.

    Args:
        folder: Directory of the model.
        record: The record of the model.
        verification: The verification of its weights.
        facts: The origin of the weights; None leaves the results in the card as they are.
    """
    path, saved = Path(folder) / "README.md", SavedModel.read(folder)
    title = markdown_text(path.parent.name)
    text = path.read_text(encoding="utf-8") if path.is_file() else f"---\ntags:\n- {TAG}\n---\n\n# {title}\n"
    before, _, rest = text.partition(_BEGIN)
    after = rest.partition(_END)[2]
    ours = f"{_BEGIN}\n{section(record, verification, saved)}\n{_END}"
    card = ModelCard(f"{before.rstrip()}\n\n{ours}\n{after.lstrip()}", ignore_metadata_errors=True)
    _complete(card, saved, facts)
    if facts is not None:
        _replace_results(card, facts, path.parent.name)
    write_text(path, str(card))


def _complete(card: ModelCard, saved: SavedModel, facts: CardFacts | None) -> None:
    """Add the metadata that a card lacks."""
    data, facts = card.data, facts or CardFacts()
    base = facts.base_model
    if saved.adapter is not None:
        base = hub_name(str(saved.adapter.config.get("base_model_name_or_path")))
    if base is not None and (facts.new_weights or not data.get("base_model")):
        data["base_model"] = base
    known = {"library_name": saved.library, "pipeline_tag": saved.task}
    for key, value in known.items():
        if value is not None and not data.get(key):
            data[key] = value
    if facts.datasets:
        data["datasets"] = _with(data.get("datasets"), facts.datasets)
    data["tags"] = _with(data.get("tags"), [TAG])


def _with(present: str | list[str] | None, added: Sequence[str]) -> list[str]:
    """Return a list of a card with more entries, each once."""
    return [*dict.fromkeys([*([present] if isinstance(present, str) else present or []), *added])]


def _replace_results(card: ModelCard, facts: CardFacts, name: str) -> None:
    """Replace our own results of an earlier evaluation in `model-index`; those of others stay, unless ours say more."""
    task = card.data.get("pipeline_tag")
    new = [] if task is None else _results(facts, str(task))
    old = card.data.get("eval_results") or []
    kept = [each for each in old if each.source_name != _SOURCE and not any(_is_same(each, other) for other in new)]
    results = [*([] if facts.new_weights else kept), *new]
    if old or new:  # the name stands in `model-index` beside the results
        card.data["model_name"] = (card.data.get("model_name") or name) if results else None
    card.data["eval_results"] = results or None


def _results(facts: CardFacts, task: str) -> list[EvalResult]:
    return [
        EvalResult(
            task_type=task,
            dataset_type=data.name or _UNKNOWN,
            dataset_name=data.name or _UNKNOWN,
            dataset_config=data.config,
            dataset_split=data.split,
            metric_type=metric,
            metric_value=value,
            source_name=_SOURCE,
            source_url=HOME,
        )
        for data, metrics in facts.evaluations.items()
        for metric, value in metrics.items()
    ]


def _is_same(one: EvalResult, other: EvalResult) -> bool:
    """Return True if two results are of one metric on one dataset, which may have a longer name in one of them."""
    keys = ("task_type", "metric_type", "dataset_config", "dataset_split")
    names = {result.dataset_type.rpartition("/")[2].lower() for result in (one, other)}  # "glue" is "nyu-mll/glue"
    return len(names) == 1 and all(getattr(one, key) == getattr(other, key) for key in keys)
