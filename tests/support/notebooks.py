"""Run the notebooks of the examples without Jupyter, and store what they print.

    python -m tests.support.notebooks

runs each notebook in an empty directory and writes its outputs into it. A cell that is tagged `no-output` keeps none,
because it prints times.
"""

import contextlib
import io
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

NOTEBOOKS = sorted((Path(__file__).parents[2] / "examples/notebooks").glob("*.ipynb"))
NUMBER = re.compile(r"\d+\.\d+")


def read(path: Path) -> dict[str, Any]:
    """Return a notebook."""
    notebook: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return notebook


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the cells of code, in their order."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def keeps_output(cell: dict[str, Any]) -> bool:
    """Return False if a cell is tagged to keep no output."""
    return "no-output" not in cell["metadata"].get("tags", [])


def stored_output(cell: dict[str, Any]) -> str:
    """Return the text that is stored for a cell."""
    return "".join("".join(output["text"]) for output in cell["outputs"])


def run(path: Path) -> list[str]:
    """Run all cells of a notebook in one namespace, in the present directory. Return what each printed."""
    names: dict[str, Any] = {"__name__": "__main__"}
    printed = []
    for number, cell in enumerate(code_cells(read(path)), 1):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile("".join(cell["source"]), f"{path.name}, cell {number}", "exec"), names)
        printed.append(out.getvalue())
    return printed


def same_output(shown: str, stored: str, tolerance: float = 0.15) -> bool:
    """Return True if two texts are equal, but for numbers with a fraction, which may differ by the tolerance."""
    pairs = zip(NUMBER.findall(shown), NUMBER.findall(stored), strict=False)
    words = [re.sub(r"-{3,}| {2,}", " ", NUMBER.sub("#", text)) for text in (shown, stored)]
    return words[0] == words[1] and all(abs(float(one) - float(other)) <= tolerance for one, other in pairs)


def store(path: Path, printed: list[str]) -> None:
    """Write what the cells printed into a notebook."""
    notebook = read(path)
    for number, (cell, text) in enumerate(zip(code_cells(notebook), printed, strict=True), 1):
        kept = text if keeps_output(cell) else ""
        output = {"name": "stdout", "output_type": "stream", "text": kept.splitlines(keepends=True)}
        cell |= {"execution_count": number, "outputs": [output] if kept else []}
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    for notebook in NOTEBOOKS:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            store(notebook, run(notebook))
        print(notebook)
