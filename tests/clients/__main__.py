"""Run transformers' own tests of its Trainer with a sparse one in its place, and list the tests that end otherwise.

    git clone --depth 1 --branch v5.2.0 https://github.com/huggingface/transformers
    python -m tests.clients transformers --trainers dense asp ste callback

The checkout should have the version that is installed. The tests also need `parameterized`. A plain Trainer runs first,
because some tests fail without us. Models of two numbers get a block that can be pruned, whose output is zero.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = ("tests/trainer/test_trainer.py", "tests/trainer/test_trainer_callback.py")
Outcomes = Mapping[str, Sequence[str]]  # by test: "passed", "failed" or "skipped", and the message of an error


def run_tests(checkout: Path, trainer: str, arguments: Sequence[str] = ()) -> Outcomes:
    """Run the tests of a checkout, and return how they ended.

    Args:
        checkout: The directory of transformers' sources. They are not imported, but for their tests.
        trainer: "plain", "callback", or the recipe of an NxMTrainer.
        arguments: Further arguments of pytest.

    Raises:
        RuntimeError: If pytest did not run the tests.
    """
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder, "outcomes.json")
        path = os.pathsep.join((str(ROOT / "tests/clients/in_place"), str(ROOT), os.environ.get("PYTHONPATH", "")))
        environment = os.environ | {"PYTHONPATH": path, "NXM_IN_PLACE": trainer, "NXM_OUTCOMES": str(written)}
        environment |= {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
        files = [name for name in FILES if (checkout / name).exists()]
        command = [sys.executable, "-m", "pytest", "-q", "--tb=line", "-p", "nxm_in_place", "-p", "no:cacheprovider"]
        ended = subprocess.run([*command, *files, *arguments], cwd=checkout, env=environment, capture_output=True)
        outcomes: Outcomes = json.loads(written.read_text()) if written.exists() else {}
    if not outcomes:
        raise RuntimeError(f"pytest ran no test in {checkout}:\n{ended.stdout.decode()[-3000:]}{ended.stderr.decode()}")
    return outcomes


def differences(plain: Outcomes, ours: Outcomes) -> dict[str, str]:
    """Return the tests that end otherwise, each with what came of it.

    Args:
        plain: The outcomes with a plain Trainer.
        ours: Those with ours.
    """
    lines = {}
    for name in sorted(plain.keys() | ours.keys()):
        before, (after, message) = plain.get(name, ("missing", ""))[0], ours.get(name, ("missing", ""))
        if before != after:
            lines[name] = f"{before} -> {after}  {message.strip().splitlines()[0] if message.strip() else ''}".rstrip()
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Print the table and the differences.

    Args:
        arguments: The command line; by default that of the process.

    Returns:
        The number of tests that end otherwise.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="a directory with transformers' sources")
    parser.add_argument("--trainers", nargs="+", default=["dense", "asp", "ste", "callback"], help="what to try")
    parser.add_argument("-k", default="", metavar="EXPRESSION", help="which tests, as for pytest")
    given = parser.parse_args(arguments)
    chosen = ["-k", given.k] if given.k else []
    plain = run_tests(given.checkout, "plain", chosen)
    print("plain:", dict(Counter(outcome for outcome, _ in plain.values())), flush=True)
    number = 0
    for trainer in given.trainers:
        ours = run_tests(given.checkout, trainer, chosen)
        otherwise = differences(plain, ours)
        number += len(otherwise)
        print(f"{trainer}:", dict(Counter(outcome for outcome, _ in ours.values())), flush=True)
        for name, line in otherwise.items():
            print(f"  {name.partition('::')[2]}: {line}", flush=True)
    return number


if __name__ == "__main__":
    sys.exit(bool(main()))
