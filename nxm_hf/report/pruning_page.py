"""The page of models that were pruned without training: the output error of each layer, as bars and in a table."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from nxm_hf.pruning.result import RESULT_FILE, PrunedLayer, PruningResult
from nxm_hf.report.html import html_page, html_table, share_bar

HEADER = ("layer", "role", "shape", "pattern", "density", "energy kept", "error", "", "by magnitude", "", "note")


def is_pruned_model(folder: str | Path) -> bool:
    """Return whether `nxm prune` or `nxm convert` wrote a directory.

    Args:
        folder: The directory.
    """
    return (Path(folder) / RESULT_FILE).is_file()


def pruning_page(folders: Sequence[str | Path]) -> str:
    """Return the report of pruned models, one below the other, as HTML.

    Args:
        folders: Directories that `nxm prune` or `nxm convert` wrote.

    Raises:
        ValueError: if the record of a directory cannot be read.
    """
    sections = "".join(_section(Path(folder)) for folder in folders)
    return html_page("Pruning report", ", ".join(Path(folder).resolve().name for folder in folders), sections)


def _section(folder: Path) -> str:
    result = PruningResult.read(folder)
    errors = [error for layer in result.layers for error in (layer.error, layer.magnitude_error) if error is not None]
    largest = max(errors, default=0) or 1
    layers = html_table(HEADER, [_row(layer, largest) for layer in result.layers], row_headers=1)
    settings = ", ".join(f"{name}={value!r}" for name, value in result.settings.items()) or "none"
    facts = {"method": result.method, "settings": settings, **result.summary, **result.score_summary}
    note = "Errors are of each layer's outputs over the calibration tokens, squared, as a share of the outputs."
    return (
        f'<section id="layers">\n<h2>{escape(folder.resolve().name)}</h2>\n'
        f"{html_table(('name', 'value'), list(facts.items()), row_headers=1)}"
        f'<h3>Layers</h3>{layers}<p class="note">{note}</p>\n</section>\n'
    )


def _row(layer: PrunedLayer, largest_error: float) -> list[str]:
    cells = [layer.name, layer.role, "x".join(map(str, layer.shape)), layer.pattern, f"{layer.density:.4f}"]
    cells.append(f"{layer.kept_energy:.4f}")
    for error in (layer.error, layer.magnitude_error):
        cells += ["-", ""] if error is None else [f"{error:.4f}", share_bar(error / largest_error)]
    return [*cells, layer.note]
