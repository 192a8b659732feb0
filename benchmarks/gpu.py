"""Everything that only a GPU can show, in one command for a GPU that is borrowed for a quarter of an hour.

    python -m benchmarks.gpu --out out/gpu                                # ten minutes at most
    python -m benchmarks.gpu --out out/gpu --only layers models           # some sections; the others keep their rows
    python -m benchmarks.gpu --out out/tiny --device cpu --tiny           # a rehearsal without a GPU

Every section is a process of its own with a budget of time. It writes each row when it is measured, so that an error in
one section, or its end, loses nothing else. Rows are in `results.json`, and tables in `results.md`. Files of
sections are in a folder beside, such as `out/gpu-sections`.

- tests: the tests that need a GPU.
- masks: the Triton kernels: their self-tests, the same masks as by torch, and their times.
- layers: products of dense layers, of compiled ones, by CUTLASS, and by cuSPARSELt with searched algorithms.
- models: the forward pass of whole models; eager, in a CUDA graph, and compiled.

Alternatives run in turns. Between them the second-level cache is overwritten. Times are by CUDA events: medians and
quartiles. Layers are launched while the GPU is still busy, so that their times are those of kernels alone. A rehearsal
computes 2:4 products in plain torch; its times mean nothing.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch

from benchmarks.cpu_products import cpu_products
from benchmarks.gpu_sections import ROOT, SECTIONS, Row, Setting

BUDGETS = {"tests": 120, "masks": 50, "layers": 110, "models": 300}  # seconds
COLUMNS = {
    "tests": ("command", "code", "summary"),
    "masks": ("pattern", "dtype", "solver", "same as torch", "ms", "torch ms", "error"),
    "layers": ("model", "shape", "tokens", "by", "ms", "quartiles", "speed-up", "difference", "bytes", "error"),
    "models": ("model", "batch", "by", "run", "ms", "quartiles", "speed-up", "difference", "bytes", "error"),
}


def run_section(name: str, setting: Setting) -> None:
    """Run a section in this process, and append its rows to its file.

    Args:
        name: The section.
        setting: Where.
    """
    path = setting.sections / f"{name}.jsonl"
    path.write_text("")

    def emit(row: Row) -> None:
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    torch.manual_seed(0)
    with nullcontext() if setting.on_gpu else cpu_products():
        SECTIONS[name](setting, emit)


def start_section(name: str, setting: Setting, seconds: float) -> str:
    """Run a section in a process of its own, and return how it ended.

    Args:
        name: The section.
        setting: Where.
        seconds: The time after which it is stopped, with all that it has started.
    """
    words = ["--section", name, "--device", str(setting.device), "--out", str(setting.out.absolute())]
    words += ["--tiny"] if setting.tiny else []
    begin = time.perf_counter()
    with (setting.sections / f"{name}.log").open("w") as log:
        command = [sys.executable, "-m", "benchmarks.gpu", *words]
        child = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = child.wait(seconds)
            end = "done" if code == 0 else f"failed with code {code}"
        except subprocess.TimeoutExpired:
            end = "stopped at the end of its time"
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    return f"{end} after {time.perf_counter() - begin:.0f} s"


def write_results(setting: Setting, ends: Mapping[str, str]) -> None:
    """Write all rows that there are, as JSON and as tables.

    Args:
        setting: Where.
        ends: How each section that ran has ended.
    """
    installation = setting.installation()
    about = {**vars(installation), "cuda": torch.version.cuda, "tiny": setting.tiny, "sections": dict(ends)}
    lines = [f"# {installation.gpu}", "", *(f"- {key}: {value}" for key, value in about.items() if key != "sections")]
    rows: dict[str, list[Row]] = {}
    logs = {path.stem: path.read_text().splitlines()[-40:] for path in sorted(setting.sections.glob("*.log"))}
    for name, columns in COLUMNS.items():
        path = setting.sections / f"{name}.jsonl"
        if not path.is_file():
            continue
        rows[name] = list(_read_rows(path))
        lines += ["", f"## {name}: {ends.get(name, 'of an earlier run')}", "", f"| {' | '.join(columns)} |"]
        lines += ["|" + "---|" * len(columns)]
        lines += [f"| {' | '.join(_cell(row.get(column)) for column in columns)} |" for row in rows[name]]
        for row in rows[name]:
            if "report" in row:
                lines += ["", f"{row['model']}:", "", "```text", row["report"], "```"]
    (setting.out / "results.json").write_text(json.dumps({**about, "rows": rows, "logs": logs}, indent=1) + "\n")
    (setting.out / "results.md").write_text("\n".join(lines) + "\n")


def _read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a file, without the last one if its process was killed while it wrote."""
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            return


def _cell(value: object) -> str:
    if isinstance(value, list):
        return " to ".join(map(str, value))
    return "" if value is None else str(value).replace("|", "/").replace("\n", " ")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run sections one after the other, and write the results after each.

    Args:
        arguments: The command line.

    Returns:
        0 if all sections came to their end.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder of results")
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--tiny", action="store_true", help="small shapes, to try the script")
    parser.add_argument("--only", nargs="+", choices=BUDGETS, default=list(BUDGETS), help="the sections to run")
    parser.add_argument("--seconds", type=float, help="the time of each section, in place of its own budget")
    parser.add_argument("--section", choices=BUDGETS, help=argparse.SUPPRESS)
    words = parser.parse_args(arguments)
    setting = Setting(words.device, words.tiny, words.out)
    if setting.on_gpu and not torch.cuda.is_available():
        parser.error("torch sees no GPU; write --device cpu --tiny to rehearse")
    for folder in (setting.out, setting.sections):
        folder.mkdir(parents=True, exist_ok=True)
    if words.section:
        run_section(words.section, setting)
        return 0
    ends: dict[str, str] = {}
    for name in words.only:
        ends[name] = start_section(name, setting, words.seconds or BUDGETS[name])
        print(f"{name}: {ends[name]}", flush=True)
        write_results(setting, ends)
    return 0 if all(end.startswith("done") for end in ends.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
