"""Complete the checkpoints of a Trainer with a manifest, between its last file and the deletion of older ones."""

from collections.abc import Mapping
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

from accelerate import PartialState
from transformers import TrainerState, TrainingArguments

from nxm_hf.storage.checkpoints import complete_checkpoint, is_checkpoint
from nxm_hf.storage.manifest import add_to_manifest, file_stamps

RANDOM_STATES = "rng_state_*.pth"  # of several processes, each of which writes its own


def complete_after_state(state: TrainerState, left_out: str = "", expected: Mapping[str, str] | None = None) -> None:
    """Have every checkpoint completed as soon as Trainer has written its own state there, which it does last.

    Trainer reports a save only after it has deleted older checkpoints. No event comes before that.

    Args:
        state: The state of the Trainer. Its `save_to_json` is replaced, of this object only.
        left_out: Which files other processes may still be writing then.
        expected: By name of a file, the digest of the bytes that were last written into it.
    """
    state.save_to_json = partial(_save_and_complete, state, left_out, expected)  # type: ignore[method-assign]


def add_random_states(args: TrainingArguments, folder: str | Path) -> None:
    """Add the random states of all processes to a manifest. Call it in every process.

    Args:
        args: The arguments of the Trainer.
        folder: The checkpoint.
    """
    PartialState().wait_for_everyone()
    if args.should_save:
        add_to_manifest(folder, RANDOM_STATES)


def _save_and_complete(state: TrainerState, left_out: str, expected: Mapping[str, str] | None, json_path: str) -> None:
    type(state).save_to_json(state, json_path)
    folder = Path(json_path).parent
    if is_checkpoint(folder):
        complete_checkpoint(folder, [name for name in file_stamps(folder) if not fnmatch(name, left_out)], expected)
