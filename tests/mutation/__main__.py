"""Plant small faults in the library, one at a time, and see whether the tests of the file notice.

Run `python -m tests.mutation --count 40` for a sample; a larger count with the same seed goes on where that ended.
The tests of the faulty file are run, as `tests/support/places.py` tells them: first those that reach the line. With
`--further`, a mutant that they do not see meets the quick tests of its folder, and the laws of recipes and of resuming,
as far as they reach the line. Outcomes are kept in a JSON file.
Tests are loaded once for all mutants of their files: loaded functions get the code of each mutant, in a fork. Mutants
of other code are imported.
Mutants that no test can tell from the code are listed with a reason in `tests/mutation/equivalents.json`.
"""

import argparse
import tempfile
from collections import Counter
from pathlib import Path

from tests.mutation.campaign import Campaign
from tests.mutation.compiled import compiled_files
from tests.mutation.sample import read_equivalents, sample
from tests.support.places import TESTS, place_of

EQUIVALENTS = TESTS / "mutation" / "equivalents.json"
FOLDERS = ("engine", "methods", "storage", "solvers", "layers")
LAWS = ("tests/laws/test_recipes.py", "tests/laws/test_resume.py")
CALLERS = {"nxm_hf/solvers/cpu/launch.py"}  # beside compiled code, but none depends on it; not imported anew
# No test changes them, and they take longer to import than most tests to run.
LIBRARIES = (
    "torch",
    "numba",
    "accelerate",
    "transformers.trainer",
    "transformers.models.bert.modeling_bert",
    "datasets",
)


def further_tests_of(file: str) -> tuple[str, ...]:
    """Return glob patterns of tests that may see a fault of a file, beside its own tests.

    Args:
        file: The path of the file, from the root of the tree.
    """
    return (f"tests/{Path(file).parent.relative_to('nxm_hf')}/test_*.py", *LAWS)


def main() -> int:
    """Run a sample; return 1 if fewer than the wanted share were seen."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", default=FOLDERS, help="folders or files of nxm_hf to take mutants of")
    parser.add_argument("--count", type=int, default=40, help="how many mutants")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample")
    parser.add_argument("--results", type=Path, default=Path("mutation.json"), help="what came of each mutant")
    parser.add_argument("--at-least", type=float, default=0.0, metavar="SHARE", help="share that must be seen")
    parser.add_argument("--further", action="store_true", help="run further tests on those that would survive")
    given = parser.parse_args()
    root = TESTS.parent
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as place:
        campaign = Campaign(
            root=root,
            work=Path(place, "tree"),
            results=given.results,
            tests_of=lambda file: f"tests/{place_of(file.removeprefix('nxm_hf/'))}",
            further_tests_of=further_tests_of if given.further else lambda file: (),
            compiled=compiled_files(root, "nxm_hf") - CALLERS,
            modules=LIBRARIES,
            equivalents=read_equivalents(EQUIVALENTS),
        )
        for mutant, outcome in campaign.run(
            sample(root, [f"nxm_hf/{folder}" for folder in given.folders], given.count, given.seed)
        ):
            outcomes[outcome] += 1
            print(f"{outcome:10} {mutant}", flush=True)
    seen, told = outcomes["killed"] + outcomes["timed out"], outcomes.total() - outcomes["equivalent"]
    share = seen / told if told else 1.0
    print(f"{seen} of {told} seen ({share:.1%}): {', '.join(f'{count} {name}' for name, count in outcomes.items())}.")
    return int(share < given.at_least)


if __name__ == "__main__":
    raise SystemExit(main())
