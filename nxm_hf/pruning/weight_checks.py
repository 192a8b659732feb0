"""Checks of the weights of a model before it is pruned."""

from collections.abc import Sequence

import torch

from nxm_hf.layers.plan import Plan, Target
from nxm_hf.layers.sharding import Shards
from nxm_hf.solvers.entry_counts import count_entries


def check_shards(plan: Plan, reconstructs: str | None, permutes: bool) -> None:
    """Raise for options that need whole weights. They are sharded.

    Args:
        plan: The layers to prune.
        reconstructs: What is fitted to the dense model, "block" or "model"; None without reconstruction.
        permutes: Whether channels are reordered before.

    Raises:
        ValueError: If the job needs whole weights.
    """
    needs_whole = {
        f'reconstruct="{reconstructs}"': reconstructs is not None,
        "permute=True": permutes,
        f"a container, {type(plan.whole).__name__}": plan.whole is not plan.model,
    }
    for what, is_wanted in needs_whole.items():
        if is_wanted:
            raise ValueError(f"The weights are sharded, and {what} needs whole ones; call prune before fully_shard.")


def check_weights(targets: Sequence[Target], shards: Shards | None = None) -> None:
    """Raise for a weight of which no mask can be made. If weights are sharded, every process calls this.

    Args:
        targets: The layers to prune.
        shards: The processes that share the weights; None if they are whole.

    Raises:
        ValueError: If a weight has no values, or holds NaN in any process.
    """
    for target in targets:
        if target.layer.weight.is_meta:
            raise ValueError(
                f"{target.name} is on the meta device, where device_map= leaves what it offloads, and has no values. "
                "Load the model without device_map=."
            )
    counts = torch.tensor([count_entries(target.matrix()).nans for target in targets])
    if shards is not None:
        counts = shards.total(counts)
    for target, count in zip(targets, counts.tolist(), strict=True):
        if count:
            raise ValueError(f"{target.name} holds {count} NaN, of which no mask can be made. Load another checkpoint.")
