"""The page of models that were pruned without training: what each layer's outputs lost, as bars and in a table."""

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from nxm_hf.pruning.outcome import OUTCOME_FILE, said
from nxm_hf.report.style import STYLE
from nxm_hf.report.tables import Drawn, grid
from nxm_hf.version import __version__


def is_pruned(folder: str | Path) -> bool:
    """Whether `nxm prune` or `nxm convert` wrote this directory."""
    return (Path(folder) / OUTCOME_FILE).is_file()


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
    words = _read(folder / OUTCOME_FILE)
    rows = words["layers"]
    errors = [row[key] for row in rows for key in ("error", "magnitude_error") if row[key] is not None]
    most = max(errors, default=0) or 1
    head = ("layer", "role", "shape", "pattern", "density", "energy kept", "error", "", "by magnitude", "", "note")
    table = grid(head, [_row(row, most) for row in rows], heads=1)
    facts = [[key, json.dumps(words[key])] for key in ("method", "settings", "tokens", "seconds", "peak_memory")]
    facts += [
        [name, f"{said(pair)} on {words['rows']} labelled rows"] for name, pair in words.get("scores", {}).items()
    ]
    note = "Errors are of each layer's outputs over the calibration tokens, squared, as a share of the outputs."
    return (
        f'<section id="layers">\n<h2>{escape(folder.resolve().name)}</h2>\n{grid(("name", "value"), facts, heads=1)}'
        f'<h3>Layers</h3>{table}<p class="note">{note}</p>\n</section>\n'
    )


def _row(row: dict[str, Any], most: float) -> list[str]:
    cells = [row["name"], row["role"], "x".join(map(str, row["shape"])), row["pattern"], f"{row['density']:.4f}"]
    cells.append(f"{row['kept_energy']:.4f}")
    for key in ("error", "magnitude_error"):
        cells += ["-", ""] if row[key] is None else [f"{row[key]:.4f}", _bar(row[key] / most)]
    return [*cells, row["note"]]


def _bar(share: float) -> Drawn:
    return Drawn(f'<span class="bar"><span style="width:{share:.1%}"></span></span>')


def _read(path: Path) -> dict[str, Any]:
    try:
        words = json.loads(path.read_text(encoding="utf-8"))
        words["layers"][0]["error"]
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error!r}). Prune the model again.") from error
    return words
