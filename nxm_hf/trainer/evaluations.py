"""Evaluations: the metrics of a Trainer's current weights, for the card of a saved model."""

from collections.abc import Mapping
from typing import Any

from transformers import TrainerState

from nxm_hf.storage.card_facts import DataFacts, metrics_of


class Evaluations:
    """Remember the metrics of each step, and return those of the weights that are in the model now."""

    def __init__(self) -> None:
        self.enabled = True  # off during an evaluation of other weights than the deployed ones
        self._by_step: dict[int, dict[DataFacts, dict[str, float]]] = {}
        self._state: TrainerState | None = None
        self._loaded: int | None = None  # the step of the best checkpoint, once its weights are in the model

    def begin(self, state: TrainerState) -> None:
        """Start with the log of a resumed training.

        Args:
            state: The state of the Trainer.
        """
        self._state, self._loaded, self._by_step = state, None, {}
        for record in state.log_history:
            if metrics := metrics_of(record):
                self._by_step.setdefault(int(record.get("step", 0)), {}).setdefault(DataFacts(), {}).update(metrics)

    def add(self, state: TrainerState, metrics: Mapping[str, Any] | None, dataset: Any) -> None:
        """Add the metrics of an evaluation.

        Args:
            state: The state of the Trainer.
            metrics: The metrics that the evaluation returned.
            dataset: The data that it was done on.
        """
        if not self.enabled or not (found := metrics_of(metrics or {})):
            return
        self._state = state
        if self._loaded is not None:  # an evaluation of the best weights replaces what was logged of them
            self._by_step[state.global_step], self._loaded = {}, None
        self._by_step.setdefault(state.global_step, {}).setdefault(DataFacts.of(dataset), {}).update(found)

    def use_best(self, state: TrainerState) -> None:
        """Use the metrics of the best checkpoint, because the model has its weights from here on.

        Args:
            state: The state of the Trainer, which names the checkpoint.
        """
        self._loaded = int(str(state.best_model_checkpoint).rpartition("-")[2])

    def current(self) -> dict[DataFacts, dict[str, float]]:
        """Return the metrics of the weights that are in the model, by the data that they were evaluated on."""
        if self._state is None:
            return {}
        return self._by_step.get(self._state.global_step if self._loaded is None else self._loaded, {})
