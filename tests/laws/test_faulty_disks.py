"""Disks that fail: whatever stops a save, the directory holds the old files or the new ones, and the error says why."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from nxm_hf.storage.manifest import MANIFEST_FILE, changed_files
from nxm_hf.storage.replacing import COMPLETE
from tests.support.processes import command, environment
from tests.support.saving import hashes_of

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and signals")
WITH_TIMES = ("nxm_pruning.json",)  # and so the manifest differs too
REPLACING = ["save", "save-packed", "save-callback", "pack-in-place"]  # over the files of another model
NEW = ["save-new", "pack", "save-packed-alone", "convert"]
TORN = ["save", "save-packed", "pack", "convert"]
FULL = ["save", "pack"]


def run(folder: Path, *arguments: str, before: tuple[str, ...] = ()) -> dict[str, list[dict]]:
    """Run jobs, and return how each try of each ended."""
    words = [*before, *command("faulty_disk", arguments[0], folder, *arguments[1:])]
    ran = subprocess.run(words, env=environment(OMP_NUM_THREADS="1"), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    results: dict[str, list[dict]] = {}
    for line in ran.stdout.splitlines():
        if line.startswith('{"job"'):  # trainers print too
            results.setdefault((result := json.loads(line))["job"], []).append(result)
    return results


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    return folder, run(folder, "faults", *REPLACING, *NEW, "report")


@pytest.fixture(scope="module")
def torn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("torn")
    return folder, run(folder, "torn", *TORN)


def state_of(folder: Path, job: str) -> dict[str, str]:
    """Return the files that a reader of a directory sees, after the look that `nxm verify` takes first."""
    if not folder.exists():
        return {}
    assert changed_files(folder) == {}, folder
    assert not (folder / COMPLETE).exists()
    files = {name: digest for name, digest in hashes_of(folder).items() if not name.startswith(".")}
    if job == "save-callback":
        files.pop("training_args.bin", None)  # Trainer writes it, after the model
    if any(name in files for name in WITH_TIMES):
        return {name: digest for name, digest in files.items() if name not in (*WITH_TIMES, MANIFEST_FILE)}
    return files


def check(result: dict, folder: Path) -> str:
    """Check what a try has left, and return which files it has: "old" or "new"."""
    job = result["job"]
    inner = "model" if (folder / job / "after" / "model").exists() else "out"
    old, new = (state_of(folder / job / name / inner, job) for name in ("before", "after"))
    left = state_of(folder / job / result["name"] / inner, job)
    assert old != new and left in (old, new), (result, sorted(left))
    if result["error"]:
        assert result["error"].startswith(("WriteError: ", "OSError: ")), result
        assert job == "report" or f"{result['name']}/{inner}" in result["error"], result
    elif result["signal"] == "0":
        assert left == new, result
    return "old" if left == old else "new"


@pytest.mark.slow
@pytest.mark.parametrize("job", [*REPLACING, *NEW, "report"])
def test_a_fault_before_any_file_operation_leaves_the_old_files_or_the_new_ones(job, faults):
    folder, results = faults
    left: dict[str, list[str]] = {}
    for result in results[job]:
        left.setdefault(result["fault"], []).append(check(result, folder))
        if result["error"].startswith("WriteError") and result["fault"] == "ENOSPC":
            assert " could not be written: No space left on device." in result["error"]
            assert " bytes, and " in result["error"] and result["error"].endswith(" are free. Make room for them.")
        if result["error"].startswith("WriteError") and result["fault"] == "EROFS":
            assert result["error"].endswith("is as it was. Make it writable, or name another place.")
    assert left["SIGKILL"] == sorted(left["SIGKILL"], reverse=True) and {*left["SIGKILL"]} == {"old", "new"}


@pytest.mark.slow
@pytest.mark.parametrize("job", TORN)
def test_a_file_that_cannot_grow_leaves_the_old_files_and_is_named(job, torn):
    folder, results = torn
    left = [check(result, folder) for result in results[job]]
    assert left[0] == "old" and left == sorted(left, reverse=True)
    for result, files in zip(results[job], left, strict=True):
        if files == "old":
            assert result["error"].startswith("WriteError: "), result
            assert " could not be written: File too large" in result["error"], result
            assert result["name"] == "0" or re.search(r"\.\w+ could|^WriteError: The weights", result["error"]), result


@pytest.mark.slow
def test_a_full_disk_leaves_the_old_files_and_the_error_says_how_much_room_is_needed(tmp_path):
    (tmp_path / "small").mkdir()
    mount = f"mount -t tmpfs -o size=180k none '{tmp_path}/small' && exec \"$@\""
    try:
        subprocess.run(["unshare", "-rm", "sh", "-c", mount, "sh", "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no small disk can be mounted here: {error}")
    results = run(tmp_path, "full", *FULL, before=("unshare", "-rm", "sh", "-c", mount, "sh"))
    for job in FULL:
        (result,) = results[job]
        said = re.fullmatch(
            r"WriteError: .* could not be written: No space left on device\. /.*/small/[\w-]+/\w+ is as it was\. "
            r"Beside what is there, its files need (.*) bytes, and (.*) are free\. Make room for them\.",
            result["error"],
        )
        assert said, result
        needed, free = (int(number.replace(",", "")) for number in said.groups())
        assert 40_000 < needed and free < 200_000, result
