"""SaveHook: write the record and the model card when a model's own `save_pretrained` writes its deployed weights."""

import functools
import inspect
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from nxm_hf.storage.card_facts import CardFacts
from nxm_hf.storage.checkpoints import is_checkpoint
from nxm_hf.storage.manifest import record_model, remove_manifest
from nxm_hf.storage.model_record import read_record
from nxm_hf.storage.replacing import replaced
from nxm_hf.storage.saving import bytes_of, write_record
from nxm_hf.storage.verify import Verification, verify


class SaveHook:
    """Stand in for the `save_pretrained` of one model object, and write the record and the card after it.

    A callback is told of no save but that of a checkpoint. `trainer.save_model()` calls the model's `save_pretrained`,
    and some models write a card of their own there.

    Args:
        model: What is saved: a model, or a container around it.
        inner: The model whose layers are sparse.
        facts: Returns what the card says of where the weights come from.
        found: Returns what was found in its weights. By default they are verified, which needs them whole.
    """

    def __init__(
        self,
        model: Any,
        inner: nn.Module,
        facts: Callable[[], CardFacts] = CardFacts,
        found: Callable[[], Verification | None] | None = None,
    ):
        self._model, self._inner, self._facts = model, inner, facts
        self._found = found or functools.partial(verify, inner)
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
        call = inspect.signature(self._save).bind(*args, **kwargs)
        first = next(iter(call.arguments))
        folder = Path(call.arguments[first])
        alone = is_checkpoint(folder) or not kwargs.get("is_main_process", True)  # Trainer writes more, or another does
        if alone:
            remove_manifest(folder)
        with nullcontext(folder) if alone else replaced(folder, bytes_of(self._inner)) as new:
            call.arguments[first] = str(new)
            result = self._save(*call.args, **call.kwargs)
            record = read_record(self._inner)  # the engine removes it while the model holds its training view
            if record is not None and (verification := self._found()) is not None and verification.ok:
                write_record(new, record, verification, self._facts())
                if not alone:
                    record_model(new)
        return result

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave copies and pickles of the model with its own `save_pretrained`."""
        return getattr, (self._model, "save_pretrained")
