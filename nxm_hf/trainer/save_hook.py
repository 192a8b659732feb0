"""SaveHook: write the record and the model card when a model's own `save_pretrained` writes its deployed weights."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from nxm_hf.storage.card_facts import CardFacts
from nxm_hf.storage.checkpoints import is_checkpoint
from nxm_hf.storage.manifest import file_stamps, model_files_since, remove_manifest, write_manifest
from nxm_hf.storage.model_record import read_record
from nxm_hf.storage.saving import write_record
from nxm_hf.storage.verify import verify


class SaveHook:
    """Stand in for the `save_pretrained` of one model object, and write the record and the card after it.

    A callback is told of no save but that of a checkpoint. `trainer.save_model()` calls the model's `save_pretrained`,
    and some models write a card of their own there.

    Args:
        model: What is saved: a model, or a container around it.
        inner: The model whose layers are sparse.
        facts: Returns what the card says of where the weights come from.
    """

    def __init__(self, model: Any, inner: nn.Module, facts: Callable[[], CardFacts] = CardFacts):
        self._model, self._inner, self._facts = model, inner, facts
        self._save: Callable[..., Any] | None = None

    def attach(self) -> None:
        """Take the place of the model's `save_pretrained`, if it has one."""
        if hasattr(type(self._model), "save_pretrained"):
            self.detach()  # that of an earlier training
            self._save = self._model.save_pretrained
            functools.update_wrapper(self, self._save)
            self._model.save_pretrained = self

    def detach(self) -> None:
        """Give the model its own `save_pretrained` back, whatever training the hook was of."""
        if isinstance(vars(self._model).get("save_pretrained"), SaveHook):
            del self._model.save_pretrained

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Save the model, then write the record and the card, unless the weights in memory are not the deployed ones.

        Args:
            *args: As in the model's `save_pretrained`; the first is the directory.
            **kwargs: As in the model's `save_pretrained`.

        Returns:
            What the model's `save_pretrained` returns.
        """
        assert self._save is not None  # attached
        folder = inspect.signature(self._save).bind(*args, **kwargs).args[0]
        before = file_stamps(folder)
        remove_manifest(folder)
        result = self._save(*args, **kwargs)
        record = read_record(self._inner)  # the engine removes it while the model holds its training view
        if record is not None and (verification := verify(self._inner)).ok:
            write_record(folder, record, verification, self._facts())
            if not is_checkpoint(folder):  # of which Trainer writes more files
                write_manifest(folder, model_files_since(folder, before))
        return result

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave copies and pickles of the model with its own `save_pretrained`."""
        return getattr, (self._model, "save_pretrained")
