"""Corruptions of a checkpoint: a file that changed is named before anything is loaded, unless nothing reads it."""

import json
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest

from nxm_hf.storage.checkpoints import missing_parts
from nxm_hf.storage.manifest import MANIFEST_FILE, changed_files
from tests.support.saving import make_resuming_trainer
from tests.support.training import SaveAt, eventful, make_trainer

TIMES = 8  # how often each kind of damage is done to each file, at other places
NOT_READ = ("README.md", "training_args.bin")  # by a training that resumes


def flip(content: bytes, other: bytes, chance: random.Random) -> bytes:
    at, bit = chance.randrange(len(content)), chance.randrange(8)
    return content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]


def zero_page(content: bytes, other: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(content))
    zeroed = content[at : at + 4096]
    return content[:at] + bytes(len(zeroed)) + content[at + 4096 :]


def cut(content: bytes, other: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content))]


def append(content: bytes, other: bytes, chance: random.Random) -> bytes:
    return content + chance.randbytes(chance.randrange(1, 100))


def swap_halves(content: bytes, other: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(1, len(content))
    return content[at:] + content[:at]


def overwrite(content: bytes, other: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(content))
    random_bytes = chance.randbytes(min(64, len(content) - at))
    return content[:at] + random_bytes + content[at + len(random_bytes) :]


def other_checkpoint(content: bytes, other: bytes, chance: random.Random) -> bytes:
    return other


DAMAGES = (flip, zero_page, cut, append, swap_halves, overwrite, other_checkpoint)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with two checkpoints."""
    folder = tmp_path_factory.mktemp("whole")
    make_trainer(folder, eventful("admm"), callbacks=[SaveAt(2, 4)], max_steps=4).train()
    return folder


def says_the_same(name: str, one: bytes, other: bytes) -> bool:
    """Return True if a manifest lists the same files with the same digests as another."""
    try:
        return name == MANIFEST_FILE and json.loads(one)["files"] == json.loads(other)["files"]
    except (ValueError, LookupError, TypeError):
        return False


def test_no_corruption_of_any_file_is_silent_or_unclear(whole, tmp_path):
    """Over 600 corruptions. An error names the file, or says that the manifest itself cannot be trusted."""
    folder, chance, outcomes = tmp_path / "checkpoint-4", random.Random(0), Counter()
    shutil.copytree(whole / "checkpoint-4", folder)
    assert missing_parts(folder) == []
    for path in sorted(folder.iterdir()):
        content, other = path.read_bytes(), (whole / "checkpoint-2" / path.name).read_bytes()
        for damage in DAMAGES * TIMES:
            path.write_bytes(damaged := damage(content, other, chance))
            missing = missing_parts(folder)
            assert all("\n" not in problem and len(problem) < 400 for problem in missing)
            if path.name == "training_args.bin" and damaged != content:
                assert list(changed_files(folder)) == [path.name]  # as `nxm verify` says
            if damaged == content or path.name in NOT_READ or says_the_same(path.name, damaged, content):
                assert missing == []
                outcomes["harmless"] += 1
            else:
                assert missing, (path.name, damage.__name__)
                assert path.name == MANIFEST_FILE or [path.name] == [problem.split()[0] for problem in missing]
                outcomes["named"] += 1
        for act in (lambda path: path.write_bytes(b""), lambda path: path.unlink()):
            act(path)
            assert bool(missing_parts(folder)) is (path.name not in NOT_READ)
            outcomes["harmless" if path.name in NOT_READ else "named"] += 1
        path.write_bytes(content)
    assert outcomes.total() >= 620 and outcomes["named"] > 400, outcomes
    assert missing_parts(folder) == []


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", MANIFEST_FILE])
def test_a_training_does_not_begin_from_a_file_of_another_checkpoint(name, whole, tmp_path):
    out = Path(shutil.copytree(whole, tmp_path / "out"))
    shutil.copy(out / "checkpoint-2" / name, out / "checkpoint-4")
    trainer = make_resuming_trainer(out)
    with pytest.raises(ValueError, match=r"checkpoint-4 is not a complete checkpoint: .* Resume with"):
        trainer.train(resume_from_checkpoint=str(out / "checkpoint-4"))
    assert trainer.engine is None
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 8
