"""Modules: names and roles are those of the plain model, whatever wraps it."""

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from nxm_hf.layers.find import find_layers
from nxm_hf.layers.modules import has_adapter, inner_models, is_peft_model, unwrap, without_wrappers
from tests.support.containers import Pair, make_encoder
from tests.support.layers import PLAIN_NAMES, Plain, classifier, names_of


def checkpointed(model):
    """Every second block wrapped, as selective activation checkpointing does."""
    model.bert.encoder.layer[1] = checkpoint_wrapper(model.bert.encoder.layer[1])
    return model


def compiled_blocks(model):
    for index, block in enumerate(model.bert.encoder.layer):
        model.bert.encoder.layer[index] = torch.compile(block)
    return model


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # by torch.compile
@pytest.mark.parametrize(
    "wrap",
    [
        torch.compile,
        compiled_blocks,
        checkpointed,
        nn.DataParallel,
        lambda model: torch.compile(nn.DataParallel(model)),
    ],
    ids=["compiled", "compiled blocks", "checkpointed", "parallel", "compiled parallel"],
)
def test_names_and_roles_are_those_of_the_plain_model(wrap):
    plain = [(layer.name, layer.role) for layer in find_layers(classifier())]
    assert [(layer.name, layer.role) for layer in find_layers(wrap(classifier()))] == plain


def test_a_part_that_is_called_module_keeps_its_name():
    model = nn.Module()
    model.module = Plain()
    assert names_of(model) == [f"module.{name}" for name in PLAIN_NAMES]


def test_a_container_is_the_model_inside_it_and_a_model_is_itself():
    encoder = make_encoder()
    inner = encoder[0].model
    assert unwrap(encoder) is inner and unwrap(nn.DataParallel(encoder)) is inner and unwrap(inner) is inner
    assert without_wrappers(encoder) is encoder
    assert names_of(encoder) == names_of(inner)
    assert inner_models(encoder) == [("0.model", inner)] and inner_models(inner) == []


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # by PEFT
def test_a_model_with_an_adapter_is_unwrapped_to_its_base_and_a_plain_model_has_none():
    peft = pytest.importorskip("peft")
    base = classifier()
    adapted = peft.get_peft_model(base, peft.LoraConfig(target_modules=["query"]))
    assert is_peft_model(adapted) and not is_peft_model(base)
    assert unwrap(adapted) is base and unwrap(nn.DataParallel(adapted)) is base
    assert has_adapter(adapted) and not has_adapter(classifier())


def test_a_module_that_saves_nothing_is_no_container():
    """Its files hold the names of the whole module, as a plain Trainer writes them."""
    module = nn.Sequential(make_encoder()[0].model)
    assert unwrap(module) is module and inner_models(module) == []
    assert all(name.startswith("0.encoder") for name in names_of(module))


def test_a_container_of_several_models_is_not_unwrapped_and_a_shared_model_counts_once():
    pair = Pair()
    assert unwrap(pair) is pair
    assert [name for name, _ in inner_models(pair)] == ["query.model", "document.model"]
    pair.document = pair.query
    assert unwrap(pair) is pair.query.model
    pair.query = pair.document = nn.Embedding(3, 4)  # which has a from_pretrained, and is no model
    assert inner_models(pair) == []
