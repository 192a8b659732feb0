"""Run transformers' own tests of its Trainer with a sparse one in its place, and list the tests that end otherwise.

    git clone --depth 1 --branch v5.2.0 https://github.com/huggingface/transformers
    python -m tests.clients transformers --trainers dense asp ste callback

The checkout should have the version that is installed. The tests also need `parameterized`. A plain Trainer runs first,
because some tests fail without us. Models of two numbers get a block that can be pruned, whose output is zero. Other
models without such a block are trained dense. It ends with 1 if a test ends otherwise that is not known to.
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
# Tests that end otherwise on purpose, by the end of their names.
KNOWN = {
    "test_best_model_checkpoint_behavior": "it counts the files of output_dir, where the lock file of a training stays",
    "test_save_best_checkpoint": "it counts the files of output_dir, where the lock file of a training stays",
    "test_logging_inf_nan_filter": "it trains all weights to NaN, and these are not saved",
    "test_resume_training_with_checkpoint": "it edits a checkpoint before it resumes, and that is refused",
    "test_resume_training_with_shard_checkpoint": "it edits a checkpoint before it resumes, and that is refused",
    "test_custom_callback_added_at_init": "it lists all callbacks, and ours is one more",
    "test_default_callbacks_are_present": "it lists all callbacks, and ours is one more",
    "test_printer_callback_when_tqdm_disabled": "it lists all callbacks, and ours is one more",
}
KNOWN_OF_CALLBACK = {"test_hyperparameter_search": "NxMCallback refuses a search, and names NxMTrainer"}
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
        The number of tests that end otherwise, without those that do so on purpose.
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
        known = KNOWN | (KNOWN_OF_CALLBACK if trainer == "callback" else {})
        print(f"{trainer}:", dict(Counter(outcome for outcome, _ in ours.values())), flush=True)
        for name, line in otherwise.items():
            reason = known.get(name.rpartition("::")[2])
            number += reason is None
            print(f"  {name.partition('::')[2]}: {line if reason is None else f'known, {reason}'}", flush=True)
    return number


if __name__ == "__main__":
    sys.exit(bool(main()))
