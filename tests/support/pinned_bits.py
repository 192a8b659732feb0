"""Pin the bits of the library: hash what every recipe, pattern and pruning method makes of tiny models.

Run `python tests/support/pinned_bits.py` to print one JSON object, `{"section/case/part": "sha256[:16]"}`, sorted.
Run it with `--only PREFIX` for a part of the keys.
Run it with `--against REV` to list the keys that differ between this tree and a revision; it exits with 1 if any do.
Hashes depend on the CPU and on the versions of torch and transformers, so compare only what one machine has printed.
The library is the one that Python imports: set PYTHONPATH to the root of a checkout to choose another.
A case that raises is recorded by the type of its error, under `/error`.
Only public names are used here, so that the script runs unchanged before and after a refactoring.
"""

import argparse
import contextlib
import io
import json
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
QUIET = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def pins(only: str = "") -> dict[str, str]:
    """Run the cases whose keys can begin with a prefix, and return the hashes of their parts by key."""
    import torch  # after the environment is set
    from pinned_cases import SECTIONS, digest
    from pinned_training import SECTIONS as TRAINING

    found: dict[str, str] = {}
    for section, cases in {**SECTIONS, **TRAINING}.items():
        for name, case in cases():
            key = f"{section}/{name}/"
            if not (key.startswith(only) or only.startswith(key)):
                continue
            torch.manual_seed(0)
            try:
                for part, value in case():
                    found[key + part] = digest(value)
            except Exception as error:
                found[key + "error"] = digest(type(error).__name__)
                print(f"{key}: {error!r}"[:300], file=sys.stderr)
    return {key: found[key] for key in sorted(found) if key.startswith(only)}


def quietly(only: str) -> dict[str, str]:
    """Run the cases with one thread and without a word on stdout."""
    import torch
    import transformers

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        return pins(only)


def start(root: Path, only: str) -> subprocess.Popen:
    """Start this script in a process of its own, with the library of a checkout."""
    command = [sys.executable, str(Path(__file__).resolve()), "--only", only, "--root", str(root)]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=tempfile.gettempdir())


def compare(revision: str, only: str) -> list[str]:
    """Return the keys that differ between a revision and this tree."""
    with tempfile.TemporaryDirectory() as place:
        there = Path(place, "tree").resolve()
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(there), revision], check=True, stdout=sys.stderr)
        try:
            runs = [start(there, only), start(ROOT, only)]
            texts = [run.communicate()[0] for run in runs]
        finally:
            subprocess.run([*git, "remove", "--force", str(there)], check=True, stdout=sys.stderr)
    if any(run.returncode for run in runs):
        raise SystemExit("A run has failed; what it said is above.")
    before, now = map(json.loads, texts)
    return sorted(key for key in {*before, *now} if before.get(key) != now.get(key))


def main() -> int:
    """Print the hashes, or the keys that differ from those of a revision."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", metavar="PREFIX", help="what the keys begin with")
    parser.add_argument("--against", metavar="REV", help="a revision to compare with")
    parser.add_argument("--root", type=Path, help="refuse to run unless the library is that of this checkout")
    given = parser.parse_args()
    if given.against:
        different = compare(given.against, given.only)
        print("\n".join(different) or "No key differs.")
        return int(bool(different))
    os.environ.update(QUIET)
    sys.path.append(str(ROOT))
    import nxm_hf

    if given.root and Path(nxm_hf.__file__).resolve().parents[1] != given.root.resolve():
        raise SystemExit(f"Python imports {nxm_hf.__file__}, which is not in {given.root}.")
    print(json.dumps(quietly(given.only), indent=1, sort_keys=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
