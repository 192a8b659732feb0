"""`alps`: dense until half of the training, then a frozen mask."""

import pytest
import torch

from nxm_hf import NxMConfig, attach
from nxm_hf.patterns import NM
from tests.support.toy_training import Toy, adamw, loss_at, weights


def test_alps_leaves_the_settings_of_asp_and_admm_to_them():
    for setting in ({"scores": "fisher"}, {"rho": 0.01}):
        with pytest.raises(ValueError, match=f"{next(iter(setting))!r}"):
            NxMConfig("alps", settings=setting)
    with pytest.raises(ValueError, match=r"preview of alps must be True or False; got 1\. Write preview=True"):
        NxMConfig("alps", settings={"preview": 1})


def test_weights_are_dense_for_half_of_the_steps_and_their_mask_is_frozen_from_there_on():
    model = Toy()
    optimizer = adamw(model)
    engine = attach(model, optimizer, NxMConfig("alps"), total_steps=8)
    masks = []
    for done in range(8):
        optimizer.zero_grad()
        loss_at(done, model).backward()
        optimizer.step()
        masks.append([weight != 0 for weight in weights(model)])
    engine.finish()
    assert all(mask.all() for step in masks[:3] for mask in step)
    assert all(NM(2, 4).violations(mask) == 0 for step in masks[3:] for mask in step)
    assert all(torch.equal(*pair) for step in masks[4:] for pair in zip(step, masks[3], strict=True))
