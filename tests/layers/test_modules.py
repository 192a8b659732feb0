"""Modules: names and roles are those of the plain model, whatever wraps it."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from transformers.pytorch_utils import Conv1D

from nxm_hf.layers.find import find_layers
from nxm_hf.layers.modules import (
    check_is_model,
    eval_no_grad,
    find_blocks,
    has_adapter,
    inner_models,
    is_linear,
    is_peft_model,
    is_transposed,
    plain_name,
    unwrap,
    without_wrappers,
)
from tests.support.containers import Pair, make_encoder
from tests.support.layers import BERT_NAMES, PLAIN_NAMES, Plain, classifier, names_of


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
    assert has_adapter(adapted) and not has_adapter(classifier()) and not has_adapter(nn.Linear(1, 1))


@pytest.mark.parametrize("names", [["peft_config"], ["get_base_model"], ["peft_config", "_hf_peft_config_loaded"]])
def test_a_model_that_has_a_part_of_what_a_peft_model_has_is_itself(names):
    """Such as one on which transformers has put an adapter: it has a config of PEFT, and no base model."""
    model = Plain()
    for name in names:
        setattr(model, name, {"default": None})
    assert not is_peft_model(model) and unwrap(model) is model and names_of(model) == PLAIN_NAMES
    assert has_adapter(model) == ("_hf_peft_config_loaded" in names)


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


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("bert-base", "'bert-base' is a path. Load it with from_pretrained"),
        (Path("a/b"), "'a/b' is a path. Load it with from_pretrained"),
        (nn.Linear, r"Linear is a class. Write Linear.from_pretrained\(\.\.\.\)"),
        (SimpleNamespace(model=nn.Linear(1, 1)), "got a SimpleNamespace. Write its .model[.]$"),
        (SimpleNamespace(model="x", model_body=nn.Linear(1, 1)), "got a SimpleNamespace. Write its .model_body[.]$"),
        (SimpleNamespace(model="x"), "got a SimpleNamespace. Load one with from_pretrained"),
        (None, "got a NoneType. Load one with from_pretrained"),
    ],
    ids=str,
)
def test_what_is_no_model_is_a_type_error_that_says_what_to_write(value, says):
    for act in (check_is_model, without_wrappers, unwrap):
        with pytest.raises(TypeError, match=f"^A model is needed, and {says}"):
            act(value)
    assert check_is_model(nn.Linear(1, 1)) is None


@pytest.mark.parametrize("fails", [False, True])
def test_evaluation_mode_and_no_gradients_end_with_the_block_in_the_mode_that_each_module_had(fails):
    model = classifier().train()
    model.bert.encoder.layer[0].eval()
    before = [module.training for module in model.modules()]
    assert len(set(before)) == 2
    try:
        with eval_no_grad(model):
            assert not any(module.training for module in model.modules()) and not torch.is_grad_enabled()
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert [module.training for module in model.modules()] == before and torch.is_grad_enabled()


def test_modules_of_one_matrix_are_linear_and_some_store_it_as_its_transpose():
    kinds = {
        "linear": (nn.Linear(4, 4), True, False),
        "bilinear": (nn.Bilinear(4, 4, 4), False, False),
        "transposed": (Conv1D(4, 4), True, True),
        "of width one": (nn.Conv1d(4, 4, 1), True, False),
        "of width three": (nn.Conv1d(4, 4, 3), False, False),
        "embedding": (nn.Embedding(4, 4), False, False),
        "a copy": (type("Mine", (type("Conv1D", (nn.Module,), {}),), {})(), True, True),
    }
    for name, (module, linear, transposed) in kinds.items():
        assert (is_linear(module), is_transposed(module)) == (linear, transposed), name


def test_blocks_are_the_elements_of_the_outermost_stacks_under_their_names():
    model = classifier()
    assert [name for name, _ in find_blocks(model)] == [f"bert.encoder.layer.{i}" for i in range(2)]
    assert [block for _, block in find_blocks(model)] == [*model.bert.encoder.layer]
    assert next(name for name, _ in find_blocks(model, "outer")) == "outer.bert.encoder.layer.0"
    assert [name for name, _ in find_blocks(model.bert.encoder.layer, "x")] == ["x.0", "x.1"]
    nested = nn.Module()
    nested.blocks = nn.ModuleList(nn.ModuleDict({"inner": Plain().blocks}) for _ in range(2))
    assert [name for name, _ in find_blocks(nested)] == ["blocks.0", "blocks.1"]
    assert [*find_blocks(nn.Linear(1, 1))] == [] and [*find_blocks(nn.ModuleList())] == []


class Attention(nn.Sequential):
    """Has a class of its own, and no base class but those of torch."""


class Convolution(nn.Sequential):
    """As `Attention`."""


class Recurrent(Attention):
    """Shares a base class with `Attention`."""


@pytest.mark.parametrize(
    ("classes", "matrices", "blocks"),
    [
        ((Attention, Attention), (2, 2), True),
        ((Attention,), (2,), True),
        ((Attention, Recurrent), (3, 2), True),
        ((Attention, Convolution), (2, 2), False),
        ((Attention, Attention), (2, 1), False),
        ((Attention, Attention), (1, 2), False),
    ],
)
def test_blocks_have_two_matrices_each_and_a_class_in_common_that_is_not_of_torch(classes, matrices, blocks):
    model = nn.Module()
    model.layers = nn.ModuleList(
        cls(*(nn.Linear(4, 4) for _ in range(count))) for cls, count in zip(classes, matrices, strict=True)
    )
    assert [name for name, _ in find_blocks(model)] == [f"layers.{i}" for i in range(len(classes)) if blocks]


def test_wrappers_and_adapters_leave_no_trace_in_a_name():
    for name in BERT_NAMES:
        assert plain_name(name) == name
        wrapped = name.replace("layer.", "_orig_mod.layer.").replace("dense", "dense.base_layer")
        assert plain_name(f"._orig_mod.{wrapped}._checkpoint_wrapped_module") == name
    assert plain_name("") == "" and plain_name("a.original_module.b") == "a.b"
