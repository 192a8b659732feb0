"""A save that is killed anywhere leaves a whole checkpoint, and rotation keeps one."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import TrainerCallback

from nxm_hf import verify
from nxm_hf.storage.checkpoints import missing_parts, newest_complete
from nxm_hf.storage.state_file import fingerprint, read_state
from tests.support.processes import command, environment
from tests.support.processes.killed_training import ARGUMENTS
from tests.support.saving import step_of
from tests.support.training import KINDS, assert_same, contents, eventful, make_trainer, records


def assert_is_whole(checkpoint) -> None:
    """Raise unless all parts of a checkpoint are there, and are of one step."""
    header, tensors = read_state(checkpoint)
    weights = load_file(checkpoint / "model.safetensors")
    targets = {name: weights.pop(f"{name}.weight") for name in header["layers"]}
    assert fingerprint(targets.items()) == header["targets"] and fingerprint(weights.items()) == header["others"]
    assert {name.split("/")[0] for name in tensors} == set(targets)
    assert contents(checkpoint)["global_step"] == header["step"]
    assert verify(checkpoint).ok


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_at_any_file_operation_of_a_save_leaves_a_whole_checkpoint(kind, tmp_path):
    """With save_total_limit=1, where the older checkpoint goes as soon as the newer one is there."""
    done = subprocess.run(
        command("killed_training", "save", tmp_path, kind), env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    killed_at = json.loads(done.stdout.splitlines()[-1])
    print(f"file operations of a save: {json.dumps(killed_at, indent=1)}")
    assert len(killed_at["anew"]) >= 15 and len(killed_at["over"]) >= 15 and len(killed_at["torn"]) == 5
    reference = make_trainer(tmp_path / "reference", eventful("admm"), kind, **ARGUMENTS)
    reference.train()
    for way, points in killed_at.items():
        newest = []
        for number in range(len(points)):
            left = tmp_path / f"{way}-{number}" / "out"
            checkpoint = Path(newest_complete(left))
            if way == "over" and number == 0:
                continue  # nothing had been written over the checkpoint that was there
            assert_is_whole(checkpoint)
            newest.append(step_of(checkpoint))
        assert newest == sorted(newest) and set(newest) <= {2, 4}
        for number in {newest.index(2), newest.index(4) if 4 in newest else 0, len(newest) - 1}:
            left = tmp_path / f"{way}-{number + len(points) - len(newest)}" / "out"
            trainer = make_trainer(left, eventful("admm"), kind, begin=5, **ARGUMENTS)
            trainer.train(resume_from_checkpoint=newest_complete(left))
            assert_same(contents(tmp_path / "reference" / "checkpoint-8"), contents(left / "checkpoint-8"))
            assert [path.name for path in left.iterdir()] == ["checkpoint-8"]
        assert (4 in newest) == (way != "torn")


class WholeAfterEverySave(TrainerCallback):
    """Checks, after each save and its rotation, that a whole checkpoint is left, and the best one too."""

    seen = 0

    def on_save(self, args, state, control, **kwargs):
        assert step_of(newest_complete(args.output_dir)) == state.global_step
        assert not missing_parts(state.best_model_checkpoint)
        self.seen += 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("recipe", ["ste", "admm"])
def test_the_best_model_at_the_end_is_the_checkpoint_that_was_best(recipe, kind, tmp_path):
    """Pitfall 30: also after a resume, with rotation at every save; and it is sparse."""
    words = dict(eval_strategy="steps", eval_steps=1, save_steps=1, save_total_limit=1, load_best_model_at_end=True)
    words.update(metric_for_best_model="eval_loss", greater_is_better=True)  # so that it is none of the last
    checks = WholeAfterEverySave()
    trainer = make_trainer(tmp_path / "one", eventful(recipe), kind, callbacks=[checks], **words)
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert checks.seen == 8 and step_of(best) < 5
    assert [path.name for path in (tmp_path / "one").iterdir()] == [best.name]
    assert_same(load_file(best / "model.safetensors"), dict(trainer.model.state_dict()))
    assert verify(trainer.model).ok

    class Stop(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            if state.global_step == 6:
                raise KeyboardInterrupt

    broken = make_trainer(tmp_path / "two", eventful(recipe), kind, callbacks=[Stop()], **words)
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    again = make_trainer(tmp_path / "two", eventful(recipe), kind, begin=5, callbacks=[checks], **words)
    again.train(resume_from_checkpoint=newest_complete(tmp_path / "two"))
    assert checks.seen == 10 and Path(again.state.best_model_checkpoint).name == best.name
    assert_same(dict(trainer.model.state_dict()), dict(again.model.state_dict()))
    assert records(again.state.log_history, 6) == records(trainer.state.log_history, 6)
