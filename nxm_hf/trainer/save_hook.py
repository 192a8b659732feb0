"""SaveHook: write the record and the card, and check the files, when a model's own methods save deployed weights."""

import functools
import inspect
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from nxm_hf.layers.plan import Plan
from nxm_hf.storage.card_facts import CardFacts
from nxm_hf.storage.checkpoints import is_checkpoint
from nxm_hf.storage.manifest import record_model, remove_manifest
from nxm_hf.storage.model_record import read_record
from nxm_hf.storage.replacing import replaced
from nxm_hf.storage.saving import bytes_of, check_written, write_record
from nxm_hf.storage.verify import Verification, verify
from nxm_hf.storage.weight_files import holds_weights, variant_to_read

SAVES = ("save_pretrained", "save")  # containers such as SentenceTransformer have both, and one calls the other


class SaveHook:
    """Stand in for the methods that save one model object, and write the record and the card after them.

    A callback is told of no save but that of a checkpoint. `trainer.save_model()` calls the model's `save_pretrained`,
    and some models write a card of their own there.

    Args:
        model: The saved object: a model, or a container around it.
        inner: The model whose layers are sparse.
        facts: Returns the origin of the weights, for the card.
        found: Returns the verification of its weights. By default they are verified, which needs them whole.
        plan: The layers of the inner model. The weights in the files are compared with it, bit for bit, or with the
            state dict that the caller gives. None compares nothing. A model of which this process holds parts is
            compared with that state dict only.
    """

    def __init__(
        self,
        model: Any,
        inner: nn.Module,
        facts: Callable[[], CardFacts] = CardFacts,
        found: Callable[[], Verification | None] | None = None,
        plan: Plan | None = None,
    ):
        self._model, self._inner, self._facts, self._plan = model, inner, facts, plan
        self._found = found or functools.partial(verify, inner)
        self._is_saving = False

    def attach(self) -> None:
        """Take the place of the methods that save the model, if it has `save_pretrained`."""
        if hasattr(type(self._model), SAVES[0]):
            self.detach()  # that of an earlier training
            for name in SAVES:
                if hasattr(type(self._model), name):
                    setattr(self._model, name, _Method(self, self._model, name))

    def detach(self) -> None:
        """Give the model its own methods back, whatever training the hook was of."""
        for name in SAVES:
            if isinstance(vars(self._model).get(name), _Method):
                delattr(self._model, name)

    def save(self, save: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Save the model, then write the record and the card, unless the weights in memory are not the deployed ones.

        Args:
            save: The model's own method.
            args: Its arguments; the first is the directory.
            kwargs: Its arguments by name.

        Returns:
            The result of the method.

        Raises:
            RuntimeError: If a weight in the files is not that in memory.
        """
        if self._is_saving:  # one method calls the other
            return save(*args, **kwargs)
        call = inspect.signature(save).bind(*args, **kwargs)
        first = next(iter(call.arguments))
        folder = Path(call.arguments[first])
        alone = is_checkpoint(folder) or not kwargs.get("is_main_process", True)  # Trainer writes more, or another does
        if alone:
            remove_manifest(folder)
        arguments = {**kwargs, **call.arguments}
        given = None if (tensors := arguments.get("state_dict")) is None else dict(tensors)  # a save empties its own
        self._is_saving = True
        try:
            with nullcontext(folder) if alone else replaced(folder, bytes_of(self._inner)) as new:
                call.arguments[first] = str(new)
                result = save(*call.args, **call.kwargs)
                record = read_record(self._inner)  # the engine removes it while the model holds its training view
                if record is not None and (verification := self._found()) is not None and verification.ok:
                    write_record(new, record, verification, self._facts())
                    if self._plan is not None and self._is_compared(new, arguments):
                        check_written(new, self._plan, record=not alone, given=given)
                    elif not alone:
                        record_model(new)
        finally:
            self._is_saving = False
        return result

    def _is_compared(self, folder: Path, arguments: dict[str, Any]) -> bool:
        """Return True if a save with these arguments writes weights that this process holds, into the files to read."""
        here = arguments.get("state_dict") is not None or (self._plan is not None and self._plan.shards is None)
        written = holds_weights(folder) and variant_to_read(folder) == arguments.get("variant")
        return here and written and arguments.get("is_main_process", True)


class _Method:
    """One method of a model that saves it, by way of a hook.

    Args:
        hook: The hook.
        model: The model.
        name: The name of the method.
    """

    def __init__(self, hook: SaveHook, model: Any, name: str):
        self._hook, self._model, self._name = hook, model, name
        self._save = getattr(model, name)
        functools.update_wrapper(self, self._save)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Save the model as its own method does, with the record and the card."""
        return self._hook.save(self._save, args, kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave copies and pickles of the model with its own method."""
        return getattr, (self._model, self._name)
