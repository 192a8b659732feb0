"""Arguments of a config that were given to what takes one are answered with the config to write."""

import pytest
import torch

from nxm_hf import NxMCallback, NxMConfig, attach, recipes
from nxm_hf.config.misplaced import config_with
from tests.support.models import make_bert


def of_callback(**given):
    NxMCallback(**given)


def of_loop(**given):
    model = make_bert()
    attach(model, torch.optim.SGD(model.parameters(), lr=0.1), total_steps=2, **{"sparsity": "asp", **given})


@pytest.mark.parametrize(
    ("call", "given", "answer"),
    [
        (of_callback, dict(preview=True), "Write NxMCallback(NxMConfig('admm', settings={'preview': True}))."),
        (of_callback, dict(sparsity="asp", pattern="1:4"), "Write NxMCallback(NxMConfig('asp', pattern='1:4'))."),
        (of_callback, dict(sparsity="2:4", scores="alps"), "NxMConfig('admm', settings={'scores': 'alps'})"),
        (of_callback, dict(magic=1), "NxMCallback has no magic=. It has sparsity and resume_from."),
        (
            of_loop,
            dict(pattern="1:4"),
            "Write attach(model, optimizer, NxMConfig('asp', pattern='1:4'), total_steps=2).",
        ),
        (of_loop, dict(magic=1), "attach has no magic=. It has model, optimizer, sparsity, total_steps,"),
    ],
)
def test_an_argument_of_the_config_is_answered_with_that_config(call, given, answer):
    with pytest.raises(TypeError) as raised:
        call(**given)
    assert answer in str(raised.value)


@pytest.mark.parametrize("recipe", recipes.names())
def test_the_config_that_is_meant_is_one_that_can_be_made(recipe):
    for name, value in recipes.settings(recipe).items():
        text = config_with(name, value, recipe)
        assert eval(text, {"NxMConfig": NxMConfig, "inf": float("inf")}) == NxMConfig(recipe, settings={name: value})
