"""The page of models that were pruned without training: what each layer's outputs lost, as bars and in a table."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from nxm_hf._version import __version__
from nxm_hf.pruning.result import RESULT_FILE, PrunedLayer, PruningResult
from nxm_hf.report.stylesheet import STYLE
from nxm_hf.report.tables import Drawn, grid


def is_pruned(folder: str | Path) -> bool:
    """Whether `nxm prune` or `nxm convert` wrote this directory."""
    return (Path(folder) / RESULT_FILE).is_file()


def pruned_page(folders: Sequence[str | Path]) -> str:
    """The report of these directories, one below the other."""
    parts = "".join(_part(Path(folder)) for folder in folders)
    names = escape(", ".join(Path(folder).resolve().name for folder in folders))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Pruning report: {names}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<header>\n<h1>{names}</h1>\n"
        f"<p>Pruning report, drawn by nxm_hf {__version__}</p>\n</header>\n<main>\n{parts}</main>\n</body>\n</html>\n"
    )


def _part(folder: Path) -> str:
    outcome = PruningResult.read(folder)
    errors = [error for row in outcome.layers for error in (row.error, row.magnitude_error) if error is not None]
    most = max(errors, default=0) or 1
    head = ("layer", "role", "shape", "pattern", "density", "energy kept", "error", "", "by magnitude", "", "note")
    table = grid(head, [_row(row, most) for row in outcome.layers], heads=1)
    settings = ", ".join(f"{name}={value!r}" for name, value in outcome.settings.items()) or "none"
    facts = {"method": outcome.method, "settings": settings, **outcome.summary, **outcome.score_summary}
    note = "Errors are of each layer's outputs over the calibration tokens, squared, as a share of the outputs."
    return (
        f'<section id="layers">\n<h2>{escape(folder.resolve().name)}</h2>\n'
        f"{grid(('name', 'value'), list(facts.items()), heads=1)}"
        f'<h3>Layers</h3>{table}<p class="note">{note}</p>\n</section>\n'
    )


def _row(row: PrunedLayer, most: float) -> list[str]:
    cells = [row.name, row.role, "x".join(map(str, row.shape)), row.pattern, f"{row.density:.4f}"]
    cells.append(f"{row.kept_energy:.4f}")
    for error in (row.error, row.magnitude_error):
        cells += ["-", ""] if error is None else [f"{error:.4f}", _bar(error / most)]
    return [*cells, row.note]


def _bar(share: float) -> Drawn:
    return Drawn(f'<span class="bar"><span style="width:{share:.1%}"></span></span>')
