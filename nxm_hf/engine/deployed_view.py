"""The deployed view of a model in training: the sparse weights, their record, and the way back to the training view."""

from collections.abc import Callable, Mapping

import torch

from nxm_hf.config import NxMConfig, SparsityRecord
from nxm_hf.engine.preview import BIAS, biases_of, put_back
from nxm_hf.engine.training_view import Held
from nxm_hf.layers.plan import Plan, Target
from nxm_hf.solvers.entry_counts import EntryCounts
from nxm_hf.storage.model_record import record_of, remove_record, set_record
from nxm_hf.storage.state_file import Tensors
from nxm_hf.storage.verify import Verification, verify_targets


class DeployedView:
    """Show the weights that would be deployed, in place of those that are trained, and go back.

    While it is shown, the sparsity record stands in the model's config.

    Args:
        plan: The layers to prune.
        config: What to prune and how.
    """

    def __init__(self, plan: Plan, config: NxMConfig):
        self._plan, self._config = plan, config
        self._training: dict[str, Held] | None = None  # while shown: the training view of weights where it differs
        self._verification: Verification | None = None
        self._versions: list[int] = []  # of the weights, when they were verified

    @property
    def is_shown(self) -> bool:
        """Return True if the model now holds the deployed view."""
        return self._training is not None

    @property
    def verification(self) -> Verification | None:
        """Return what was found in the weights that were last deployed; None before the first time."""
        return self._verification

    @torch.no_grad()
    def show(self, change: Callable[[dict[str, Held]], Mapping[str, EntryCounts]]) -> None:
        """Show the deployed view, and write the record. After an error the training view is back.

        Args:
            change: Makes the weights what would be deployed. Its argument gets what brings each changed one back.
                It returns what it has counted in new weights, by the names of layers. The others are counted here.
        """
        self._training = {}
        try:
            counted = change(self._training)
            self.record(verify_targets(self._plan.targets, counted))
        except BaseException:
            self.leave()
            raise

    def leave(self) -> None:
        """Go back to the training view, if the deployed view is shown. An interrupt is raised when that is done."""
        if (training := self._training) is None:
            return
        try:
            self._go_back(training)
        except BaseException:
            self._go_back(training)  # the rest of the weights
            raise

    @torch.no_grad()
    def _go_back(self, training: dict[str, Held]) -> None:
        """Put back each weight that differs, and forget what is held of it."""
        for target in self._plan.trained:
            names = target.name, target.name + BIAS
            put_back(target, *map(training.get, names))
            for name in names:
                training.pop(name, None)
        remove_record(self._plan.model, only_if_trained=True)
        self._training = None

    def keep(self) -> None:
        """Make what is shown the weights of the model for good, and verify them.

        Raises:
            ValueError: If a weight does not hold its pattern.
        """
        self._training = None
        if self._plan.targets:
            verification = verify_targets(self._plan.targets)
            verification.raise_for_problems()
            self.record(verification)

    def training_view(self, target: Target) -> Held:
        """Return a weight as it is in the training view.

        Args:
            target: Its layer.
        """
        return (self._training or {}).get(target.name, target.matrix().detach())

    def training_biases(self) -> Tensors:
        """Return the biases of the training view that a preview has changed, by their names in the state."""
        return biases_of(self._training or {})

    def verify(self) -> Verification:
        """Verify the deployed weights. While they are shown this is done once, unless they change."""
        counted = self.is_shown and self._versions == self._weight_versions()
        if self._verification is None or not counted or self._plan.shards is not None:  # all processes count
            return verify_targets(self._plan.targets)
        return self._verification

    def record_of(self, verification: Verification) -> SparsityRecord:
        """Describe the deployed model.

        Args:
            verification: What was found in its weights.

        Returns:
            The record to save with the model.
        """
        return record_of(self._plan, self._config, verification.density)

    def record(self, verification: Verification) -> None:
        """Remember what was found in the deployed weights, and write the record into the model's config.

        Args:
            verification: What was found in them.
        """
        self._verification, self._versions = verification, self._weight_versions()
        if self._plan.targets:
            set_record(self._plan.model, self.record_of(verification))

    def _weight_versions(self) -> list[int]:
        """Return the number of changes in place of each weight, as torch counts them."""
        return [target.layer.weight._version for target in self._plan.targets]
