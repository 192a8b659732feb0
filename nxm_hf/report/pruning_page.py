"""The page of models that were pruned without training: the output error of each layer, as bars and in a table."""

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from nxm_hf.pruning.result import RESULT_FILE, PrunedLayer, PruningResult
from nxm_hf.report.html import html_page, paragraphs, section, share_bar
from nxm_hf.report.side_by_side import Cells, quantities, rows_by_name

COLUMNS = ("pattern", "density", "energy kept", "error", "", "by magnitude", "", "note")


def is_pruned_model(folder: str | Path) -> bool:
    """Return whether `nxm prune` or `nxm convert` wrote a directory.

    Args:
        folder: The directory.
    """
    return (Path(folder) / RESULT_FILE).is_file()


def pruning_page(folders: Sequence[str | Path]) -> str:
    """Return the report of pruned models, side by side, as HTML.

    Args:
        folders: Directories that `nxm prune` or `nxm convert` wrote.

    Raises:
        ValueError: if the record of a directory cannot be read.
    """
    names = [Path(folder).resolve().name for folder in folders]
    results = [PruningResult.read(Path(folder)) for folder in folders]
    facts = quantities(names, [_facts(result) for result in results])
    errors = [error for result in results for layer in result.layers for error in _errors(layer) if error is not None]
    largest = max(errors, default=0) or 1
    rows = [{layer.name: _cells(layer, largest) for layer in result.layers} for result in results]
    layers = rows_by_name(names, ("layer", "role", "shape"), COLUMNS, rows)
    note = "Errors are of each layer's outputs over the calibration tokens, squared, as a share of the outputs."
    sections = [
        section("settings", "How it was pruned", facts),
        section("layers", "Layers", layers, paragraphs("note", [note])),
        _blocks(names, results),
    ]
    return html_page("Pruning report", ", ".join(names), sections)


def _blocks(names: Sequence[str], results: Sequence[PruningResult]) -> Markup:
    """Return the section of reconstructed blocks; empty if there are none."""
    rows: list[dict[str, tuple[Cells, Cells]]] = [
        {block.name: ((), (f"{block.before:.4f}", f"{block.after:.4f}")) for block in result.blocks}
        for result in results
    ]
    if not any(rows):
        return Markup()
    note = "Errors are of each block's outputs beside the dense model's, squared, as a share of the outputs."
    blocks = rows_by_name(names, ("block",), ("pruned", "reconstructed"), rows)
    return section("blocks", "Reconstructed blocks", blocks, paragraphs("note", [note]))


def _facts(result: PruningResult) -> dict[str, str]:
    settings = ", ".join(f"{name}={value!r}" for name, value in result.settings.items()) or "none"
    facts = {"method": result.method, "settings": settings}
    if result.reconstruct:
        facts["reconstruction"] = ", ".join(f"{name}={value!r}" for name, value in result.reconstruct.items())
    facts |= {**result.summary, **result.score_summary}
    return {key: str(value) for key, value in facts.items()}


def _errors(layer: PrunedLayer) -> tuple[float | None, float | None]:
    return layer.error, layer.magnitude_error


def _cells(layer: PrunedLayer, largest_error: float) -> tuple[Cells, Cells]:
    cells = [layer.pattern, f"{layer.density:.4f}", f"{layer.kept_energy:.4f}"]
    for error in _errors(layer):
        cells += ["-", ""] if error is None else [f"{error:.4f}", share_bar(error / largest_error)]
    return (layer.role, "x".join(map(str, layer.shape))), (*cells, layer.note)
