"""Which process prunes which layer; what comes of it is tested in groups of processes by tests/distributed."""

import pytest

from nxm_hf import NxMConfig
from nxm_hf.layers.plan import Plan
from nxm_hf.pruning.sharded_layers import layer_owners
from tests.support.models import make_model

BLOCK = [target for target in Plan.of(make_model("llama"), NxMConfig("asp")).targets if ".layers.0." in target.name]
SHARED = {"query": "norm", "key": "norm", "value": "norm", "ffn_in": "norm2"}  # what these layers read


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_layers_with_the_same_inputs_have_one_owner_and_work_is_spread(processes):
    sharing = {target.name: SHARED.get(target.layer.role, ()) for target in BLOCK}
    owners = layer_owners(BLOCK, sharing, processes)
    assert list(owners) == [target.name for target in BLOCK]
    by_input = {}
    for target in BLOCK:
        by_input.setdefault(SHARED.get(target.layer.role, target.name), set()).add(owners[target.name])
    assert all(len(names) == 1 for names in by_input.values()) and len(by_input) == 4
    assert len(set(owners.values())) == min(processes, 4)


def test_the_largest_work_is_given_first():
    owners = layer_owners(BLOCK, {target.name: () for target in BLOCK}, 2)
    down = next(target.name for target in BLOCK if target.layer.role == "ffn_out")
    assert owners[down] == 0  # it reads the most inputs
    assert sum(owner == 0 for owner in owners.values()) < len(BLOCK) / 2
