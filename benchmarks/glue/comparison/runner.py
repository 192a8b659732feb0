"""Runs trials: several at a time, each in its own process, and in a partial folder until it is complete."""

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
from typing import IO, TypeVar

from filelock import FileLock, Timeout

from .example_scripts import TASKS
from .records import TRIALS_FOLDER, Record, RecordFile, make_record
from .trials import Trial

RUN_TRIAL = str(Path(__file__).resolve().parent.parent / "run_trial.py")
RECORD = "record.json"
Item = TypeVar("Item")
Result = TypeVar("Result")


class TrialsFailed(SystemExit):
    """Raised if some trials did not finish."""


@dataclass
class Runner:
    """Runs the trials that are not finished, and records those that are.

    Args:
        folder: The output directory of the comparison.
        devices: One worker for each CUDA device; "" is whatever the process sees.
        keep_models: Whether to keep the weights of every trial.
    """

    folder: Path
    devices: Sequence[str] = ("",)
    keep_models: bool = False
    children: set[subprocess.Popen] = field(default_factory=set)
    stopping: bool = False

    def __post_init__(self) -> None:
        (self.folder / TRIALS_FOLDER / ".locks").mkdir(parents=True, exist_ok=True)
        self.records = RecordFile(self.folder / "results.jsonl")
        self.lock = threading.Lock()  # guards the records and the counters of progress
        self.free_devices: queue.SimpleQueue[str] = queue.SimpleQueue()
        for device in self.devices:
            self.free_devices.put(device)
        self.trained, self.seconds_spent, self.expected = 0, 0.0, 0

    # -- public ---------------------------------------------------------------------------------------------------

    def run(self, trials: Sequence[Trial]) -> None:
        """Run the trials that are not finished, teachers first. One that fails does not stop the others.

        Args:
            trials: The trials.

        Raises:
            TrialsFailed: At least one of them failed.
        """
        trials = list(dict.fromkeys(trials))
        teachers = [trial.teacher for trial in trials if trial.name not in self.records.records]
        needed = dict.fromkeys(teacher for teacher in teachers if teacher)
        self._run([trial for trial in needed if not self._has_weights(trial)], weights=True)
        self._run(trials)

    def map(self, work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """Apply a function to each item in threads, as many at a time as there are devices.

        Args:
            work: The function. If one call raises, for instance by Ctrl-C, all trainings under way are ended.
            items: Its arguments.

        Returns:
            The results, in the order of the items.
        """
        with ThreadPoolExecutor(len(self.devices)) as pool:
            futures = [pool.submit(work, item) for item in items]
            try:
                return [future.result() for future in futures]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                self.stop()
                raise

    def finish(self, trial: Trial, weights: bool = False, wait: bool = True) -> Record | None:
        """Return the record of a trial, after training it if it is not finished.

        Args:
            trial: The trial.
            weights: Whether its weights are needed too, because it is a teacher.
            wait: Whether to wait for another process that trains this trial.

        Returns:
            The record; None if the training failed.

        Raises:
            filelock.Timeout: Another process trains this trial, and `wait` is False.
        """
        with self._exclusive(trial, wait):
            with self.lock:
                self.records.refresh()
                record = self._unrecorded(trial) or self.records.records.get(trial.name)
            if record and (self._has_weights(trial) or not weights):
                return record
            return self._train(trial, weights)

    def stop(self) -> None:
        """End the trainings under way, and start no others."""
        self.stopping = True
        for child in list(self.children):
            child.kill()

    def folder_of(self, trial: Trial) -> Path:
        """Return the folder of a finished trial.

        Args:
            trial: The trial.
        """
        return self.folder / TRIALS_FOLDER / trial.name

    # -- private --------------------------------------------------------------------------------------------------

    def _run(self, trials: Sequence[Trial], weights: bool = False) -> None:
        remaining = [trial for trial in trials if weights or trial.name not in self.records.records]
        if trials:
            print(f"{len(trials)} {'teachers' if weights else 'trials'}, {len(remaining)} to run", flush=True)
        self.trained, self.seconds_spent, self.expected = 0, 0.0, len(remaining)
        first = self.map(lambda trial: self._finish_unless_busy(trial, weights), remaining)
        # The trials of other processes are waited for at last, when nothing else is left to do.
        busy = [trial for trial, record in zip(remaining, first, strict=True) if record == "busy"]
        second = dict(zip(busy, self.map(lambda trial: self.finish(trial, weights), busy), strict=True))
        failed = [trial for trial, record in zip(remaining, first, strict=True) if second.get(trial, record) is None]
        if failed:
            logs = ", ".join(str(self.folder_of(trial).with_suffix(".log")) for trial in failed)
            raise TrialsFailed(
                f"{len(failed)} of {len(remaining)} trials failed; their logs: {logs}. The others are kept."
            )

    def _finish_unless_busy(self, trial: Trial, weights: bool) -> Record | str | None:
        try:
            return self.finish(trial, weights, wait=False)
        except Timeout:
            return "busy"

    @contextlib.contextmanager
    def _exclusive(self, trial: Trial, wait: bool) -> Iterator[None]:
        """Hold the lock of a trial; the system releases the lock of a process that dies."""
        lock = FileLock(self.folder / TRIALS_FOLDER / ".locks" / trial.name)
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

    def _has_weights(self, trial: Trial) -> bool:
        return any(self.folder_of(trial).glob("*.safetensors"))

    def _unrecorded(self, trial: Trial) -> Record | None:
        """Record a trial that was complete, but killed before its record was added to the others."""
        path = self.folder_of(trial) / RECORD
        if trial.name in self.records.records or not path.is_file():
            return None
        record = json.loads(path.read_text(encoding="utf-8"))
        self.records.add(record)
        return record

    def _train(self, trial: Trial, weights: bool) -> Record | None:
        device = self.free_devices.get()
        try:
            return None if self.stopping else self._train_on(device, trial, weights)
        finally:
            self.free_devices.put(device)

    def _train_on(self, device: str, trial: Trial, weights: bool) -> Record | None:
        folder = self.folder_of(trial)
        for stale in folder.parent.glob(f"{trial.name}.partial-*"):
            shutil.rmtree(stale, ignore_errors=True)  # left by a kill: we hold the lock of this trial
        partial = folder.with_name(f"{trial.name}.partial-{os.getpid()}")
        began = time.perf_counter()
        with folder.with_suffix(".log").open("w", encoding="utf-8") as log:
            code = self._call([sys.executable, RUN_TRIAL, trial.task, *trial.command_line(partial)], log, device)
        seconds = time.perf_counter() - began
        if code:
            self._print_failure(trial)
            return None
        record = self._keep(trial, partial, seconds, weights)
        self._print_progress(trial, record, seconds)
        return record

    def _call(self, command: list[str], log: IO[str], device: str) -> int:
        """Return the exit code of a child, which ends when this process does: it reads a pipe that then closes."""
        environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": device} if device else {})}
        if len(self.devices) > 1:  # each child gets its share of the cores; more threads than that only contend
            environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // len(self.devices))))
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment) as child:
            self.children.add(child)
            try:
                if self.stopping:
                    child.kill()
                return child.wait()
            finally:
                self.children.discard(child)

    def _keep(self, trial: Trial, partial: Path, seconds: float, weights: bool) -> Record:
        """Move a complete trial to its folder and record it; the existing record of a teacher stays."""
        records = self.records.records
        with self.lock:
            teacher = records[trial.teacher.name] if trial.teacher else None
            record = records.get(trial.name) or make_record(trial, partial, seconds, teacher)
            (partial / RECORD).write_text(json.dumps(record), encoding="utf-8")
            if not weights and not self.keep_models:
                for path in partial.glob("*.safetensors"):
                    path.unlink()
            shutil.rmtree(self.folder_of(trial), ignore_errors=True)
            partial.rename(self.folder_of(trial))
            if trial.name not in records:
                self.records.add(record)
        return record

    def _print_progress(self, trial: Trial, record: Record, seconds: float) -> None:
        metric = TASKS[trial.task].best
        with self.lock:
            self.trained, self.seconds_spent = self.trained + 1, self.seconds_spent + seconds
            left = max(self.expected - self.trained, 0)
            remaining = self.seconds_spent / self.trained * left / min(len(self.devices), max(left, 1))
            done = f"{metric} {record['metrics'][f'eval_{metric}']:.4f}, {seconds:.0f} s"
            more = f"; {left} left, about {format_duration(remaining)}" if left else ""
            print(f"{trial.name}  {trial.recipe}  {dict(trial.grid)}  {done}{more}", flush=True)

    def _print_failure(self, trial: Trial) -> None:
        log = self.folder_of(trial).with_suffix(".log")
        last = next((line for line in reversed(log.read_text(errors="replace").splitlines()) if line.strip()), "")
        if not self.stopping:
            print(f"{trial.name}  {trial.recipe}  {dict(trial.grid)}  failed: {last.strip()[:200]}", flush=True)


def format_duration(seconds: float) -> str:
    """Return a duration in seconds, minutes or hours.

    Args:
        seconds: The duration.

    Example:
        >>> format_duration(40), format_duration(3700), format_duration(200000)
        ('40 s', '1 h 1 min', '55 h 33 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(int(seconds // 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
