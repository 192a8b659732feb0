"""Where cells are run: several at a time, each in a process and a folder of its own until it is whole."""

import contextlib
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout
from run_glue import TASKS

from comparing.cells import Cell
from comparing.results import Results, summary

RUN_CELL = str(Path(__file__).parent.parent / "run_cell.py")
RECORD = "record.json"
Item, Result = TypeVar("Item"), TypeVar("Result")


class CellsFailed(SystemExit):
    """Some cells did not come to their end."""


@dataclass
class Workshop:
    """Runs cells that are not finished, and keeps the results of those that are."""

    folder: Path
    devices: Sequence[str] = ("",)  # one worker for each; "" is whatever the process sees
    keep_models: bool = False
    children: set[subprocess.Popen] = field(default_factory=set)
    stopping: bool = False

    def __post_init__(self):
        (self.folder / "cells" / ".locks").mkdir(parents=True, exist_ok=True)
        self.results = Results(self.folder / "results.jsonl")
        self.lock = threading.Lock()  # of the results and of what is counted below
        self.free: queue.SimpleQueue[str] = queue.SimpleQueue()
        for device in self.devices:
            self.free.put(device)
        self.trained, self.spent, self.expected = 0, 0.0, 0

    # -- for whoever wants cells ----------------------------------------------------------------------------------

    def run(self, cells: Sequence[Cell]) -> None:
        """Run what is not finished; a cell that fails does not stop the others, but all of them together fail."""
        cells = list(dict.fromkeys(cells))
        teachers = [cell.teacher for cell in cells if cell.name not in self.results.records and cell.teacher]
        self._run([cell for cell in dict.fromkeys(teachers) if not self._has_weights(cell)], weights=True)
        self._run(cells)

    def spread(self, work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """Work on each item, as many at a time as there are devices; Ctrl-C ends what is under way."""
        with ThreadPoolExecutor(len(self.devices)) as pool:
            futures = [pool.submit(work, item) for item in items]
            try:
                return [future.result() for future in futures]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                self.stop()
                raise

    def finish(self, cell: Cell, weights: bool = False, wait: bool = True) -> dict | None:
        """The record of a cell, which is trained unless somebody has; None if that failed.

        Where another process is at it this waits for its result, or raises `Timeout` at once with `wait=False`.
        """
        with self._turn(cell, wait):
            with self.lock:
                self.results.refresh()
                found = self._left_by_a_kill(cell) or self.results.records.get(cell.name)
            if found and not (weights and not self._has_weights(cell)):
                return found
            return self._train(cell, weights)

    def stop(self) -> None:
        """End the trainings under way, and start none."""
        self.stopping = True
        for child in list(self.children):
            child.kill()

    # -- inside ---------------------------------------------------------------------------------------------------

    def _run(self, cells: Sequence[Cell], weights: bool = False) -> None:
        left = [cell for cell in cells if weights or cell.name not in self.results.records]
        if cells:
            print(f"{len(cells)} {'teachers' if weights else 'cells'}, {len(left)} to run", flush=True)
        self.trained, self.spent, self.expected = 0, 0.0, len(left)
        missing = self.spread(lambda cell: self._unless_busy(cell, weights), left)
        busy = [cell for cell, record in zip(left, missing, strict=True) if record == "busy"]
        again = dict(zip(busy, self.spread(lambda cell: self.finish(cell, weights), busy), strict=True))
        failed = [cell for cell, record in zip(left, missing, strict=True) if again.get(cell, record) is None]
        if failed:
            logs = ", ".join(str(self.place(cell).with_suffix(".log")) for cell in failed)
            raise CellsFailed(f"{len(failed)} of {len(left)} cells failed; their logs: {logs}. The others are kept.")

    def _unless_busy(self, cell: Cell, weights: bool) -> dict | str | None:
        try:
            return self.finish(cell, weights, wait=False)
        except Timeout:
            return "busy"

    @contextlib.contextmanager
    def _turn(self, cell: Cell, wait: bool) -> Iterator[None]:
        """Alone with a cell: the lock is the system's own, which lets go when a process dies."""
        lock = FileLock(self.folder / "cells" / ".locks" / cell.name)
        while True:
            try:
                lock.acquire(timeout=1 if wait else 0)
                break
            except Timeout:
                if self.stopping or not wait:
                    raise
        try:
            yield
        finally:
            lock.release()

    def place(self, cell: Cell) -> Path:
        """The folder of a finished cell."""
        return self.folder / "cells" / cell.name

    def _has_weights(self, cell: Cell) -> bool:
        return any(self.place(cell).glob("*.safetensors"))

    def _left_by_a_kill(self, cell: Cell) -> dict | None:
        """The record of a cell that was whole, but killed before it was written down with the others."""
        path = self.place(cell) / RECORD
        if cell.name in self.results.records or not path.is_file():
            return None
        record = json.loads(path.read_text(encoding="utf-8"))
        self.results.add(record)
        return record

    def _train(self, cell: Cell, weights: bool) -> dict | None:
        device = self.free.get()
        try:
            return None if self.stopping else self._train_on(device, cell, weights)
        finally:
            self.free.put(device)

    def _train_on(self, device: str, cell: Cell, weights: bool) -> dict | None:
        place = self.place(cell)
        for stale in place.parent.glob(f"{cell.name}.partial-*"):
            shutil.rmtree(stale, ignore_errors=True)  # left by a kill; we are alone with this cell
        partial = place.with_name(f"{cell.name}.partial-{os.getpid()}")
        began = time.perf_counter()
        with place.with_suffix(".log").open("w", encoding="utf-8") as log:
            code = self._call([sys.executable, RUN_CELL, *cell.words(partial)], log, device)
        seconds = time.perf_counter() - began
        if code:
            self._tell_failure(cell)
            return None
        record = self._keep(cell, partial, seconds, weights)
        self._tell(cell, record, seconds)
        return record

    def _call(self, command: list[str], log, device: str) -> int:
        """Run a child that ends with us: it reads the pipe that our death closes."""
        environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": device} if device else {})}
        if len(self.devices) > 1:  # each with its share of the cores, since more threads than those only contend
            environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // len(self.devices))))
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment)
        self.children.add(child)
        try:
            if self.stopping:
                child.kill()
            return child.wait()
        finally:
            child.stdin.close()
            self.children.discard(child)

    def _keep(self, cell: Cell, partial: Path, seconds: float, weights: bool) -> dict:
        """Move a whole cell to its place and write its record down; a teacher's that was there before stays."""
        with self.lock:
            teacher = self.results.records[cell.teacher.name] if cell.teacher else None
            record = self.results.records.get(cell.name) or summary(cell, partial, seconds, teacher)
            (partial / RECORD).write_text(json.dumps(record), encoding="utf-8")
            for path in () if weights or self.keep_models else partial.glob("*.safetensors"):
                path.unlink()
            shutil.rmtree(self.place(cell), ignore_errors=True)
            partial.rename(self.place(cell))
            if cell.name not in self.results.records:
                self.results.add(record)
        return record

    def _tell(self, cell: Cell, record: dict, seconds: float) -> None:
        main = TASKS[cell.task].best
        with self.lock:
            self.trained, self.spent = self.trained + 1, self.spent + seconds
            left = max(self.expected - self.trained, 0)
            rest = spelled(self.spent / self.trained * left / min(len(self.devices), max(left, 1)))
            done = f"{main} {record['metrics'][f'eval_{main}']:.4f}, {seconds:.0f} s"
            then = f"; {left} left, about {rest}" if left else ""
            print(f"{cell.name}  {cell.recipe}  {dict(cell.grid)}  {done}{then}", flush=True)

    def _tell_failure(self, cell: Cell) -> None:
        log = self.place(cell).with_suffix(".log")
        last = next((line for line in reversed(log.read_text(errors="replace").splitlines()) if line.strip()), "")
        if not self.stopping:
            print(f"{cell.name}  {cell.recipe}  {dict(cell.grid)}  failed: {last.strip()[:200]}", flush=True)


def spelled(seconds: float) -> str:
    """A time as one says it.

    >>> spelled(40), spelled(3700), spelled(200000)
    ('40 s', '1 h 1 min', '55 h 33 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(int(seconds // 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
