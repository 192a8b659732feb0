"""Layers: the rule that finds them, and their matrices."""

import re

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from transformers import AutoConfig, AutoModel, PretrainedConfig

from nxm_hf.families import FAMILIES, role_of
from nxm_hf.layers.find import Layer, find_layers, left_dense, stacked_weights
from tests.support.layers import BERT_NAMES, MODELS, PLAIN_NAMES, T5, Block, Plain, classifier, names_of


def product(layer, inputs):
    """inputs times the matrix, plus the bias, computed from the matrix alone; channels of a convolution come last."""
    groups = layer.module.groups if isinstance(layer.module, nn.Conv1d) else 1
    parts = zip(inputs.chunk(groups, dim=-1), layer.matrix(layer.weight).chunk(groups), strict=True)
    output = torch.cat([part @ matrix.T for part, matrix in parts], dim=-1)
    return output if layer.module.bias is None else output + layer.module.bias


@pytest.mark.parametrize("kind", MODELS)
def test_the_last_dimension_of_a_matrix_is_the_input(kind):
    """What each layer computes in a forward pass is its input times its matrix, transposed. Pitfall 19."""
    model = MODELS[kind]().eval()
    seen = {}

    def watch(layer):
        layer.module.register_forward_hook(lambda module, args, output: seen.update({layer: (args[0], output)}))

    for layer in find_layers(model):
        watch(layer)
    ids = torch.arange(1, 7)[None]
    with torch.no_grad():
        model(input_ids=ids, **({"decoder_input_ids": ids} if kind == "t5" else {}))
        assert list(seen) and set(seen) == set(find_layers(model))
        for layer, (inputs, output) in seen.items():
            if isinstance(layer.module, nn.Conv1d):
                inputs, output = inputs.transpose(1, 2), output.transpose(1, 2)
            torch.testing.assert_close(output, product(layer, inputs))
            assert layer.shape == tuple(layer.matrix(layer.weight).shape)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "squeezebert"])
def test_a_matrix_is_a_view_of_any_tensor_of_the_weights_shape(kind):
    for layer in find_layers(MODELS[kind]()):
        mask = torch.ones_like(layer.weight, dtype=torch.bool)
        spread = torch.zeros(*layer.weight.shape, 2)[..., 0]  # not contiguous
        for tensor in (layer.weight.data, mask, spread):
            layer.matrix(tensor).fill_(0)
            assert not tensor.any()
            assert layer.matrix(tensor).shape == layer.shape


def test_the_weight_is_looked_up_at_each_use():
    model = Plain()
    layer = find_layers(model)[0]
    model.blocks[0].gate_proj.weight = nn.Parameter(torch.zeros(16, 8))
    assert layer.weight is model.blocks[0].gate_proj.weight


def test_a_layer_says_where_its_parameter_stands_in_the_model():
    model = Plain()
    for block in model.blocks:
        block.experts = Experts()
    model.blocks[0].gate_proj.bias = None
    parameters = dict(model.named_parameters())
    for layer in find_layers(model):
        assert parameters[layer.key] is layer.weight and model.get_submodule(layer.module_name) is layer.module
        assert layer.holds_experts == ("experts" in layer.name) == (layer.name == layer.key)
        expected = None if layer.holds_experts or layer.name == PLAIN_NAMES[0] else layer.module.bias
        assert layer.bias is expected
        matrix = tuple(layer.matrix(layer.weight).shape)
        assert layer.shape == matrix
        assert layer.shape_of_one == ((matrix[0] // 4, matrix[1]) if layer.holds_experts else matrix)


def test_layers_are_found_without_numbers():
    with torch.device("meta"):
        model = classifier()
    assert [layer.shape for layer in find_layers(model, include="ffn_in")] == [(32, 16), (32, 16)]


def test_a_layer_is_a_value():
    first, again = (find_layers(model)[0] for model in [Plain()] * 2)
    assert isinstance(first, Layer)
    other = find_layers(Plain())[0]
    assert first.name == again.name == other.name and first != other


# -- the rule ----------------------------------------------------------------------------------------------------------


def test_bert_gives_its_blocks_in_order():
    assert names_of(classifier()) == BERT_NAMES


@pytest.mark.parametrize("entries", [{"exclude": ["attention", "ffn"]}, {"include": "ffn", "exclude": "ffn"}], ids=str)
def test_to_leave_out_all_layers_is_an_error_that_names_the_entries_and_the_roles(entries):
    include, exclude = entries.get("include"), entries["exclude"]
    says = (
        f"Nothing to prune in this BertFor.*: include={include!r} and exclude={exclude!r} leave none of its 12 layers"
    )
    with pytest.raises(ValueError, match=re.escape(says).replace(r"\.\*", ".*") + r"\. Roles here: query, "):
        find_layers(classifier(), **entries)


def test_a_plain_model_needs_no_config():
    layers = find_layers(Plain())
    assert [(layer.name, layer.role) for layer in layers] == [
        (name, "ffn_in" if "gate" in name else "ffn_out") for name in PLAIN_NAMES
    ]


def test_a_config_that_is_a_dict_or_nothing_gives_the_usual_names():
    model = Plain()
    for config in ({"model_type": "bert"}, None, "bert"):
        model.config = config
        assert find_layers(model)[0].role == "ffn_in"


def test_a_part_with_a_config_of_its_own_has_the_roles_of_its_family():
    model = Plain()
    model.config = AutoConfig.for_model("bert")
    model.decoder = AutoModel.from_config(AutoConfig.for_model("t5", **T5)).decoder
    roles = {layer.name: layer.role for layer in find_layers(model)}
    assert roles["blocks.0.gate_proj"] == "ffn_in"
    assert roles["decoder.block.0.layer.1.EncDecAttention.q"] == "cross_query"
    roles = {layer.name: layer.role for layer in find_layers(model.decoder)}  # the part is all that is looked at
    assert roles["block.0.layer.1.EncDecAttention.q"] == "cross_query"


def part_of(family, model_type):
    """A stack of two blocks with a layer for each suffix of a family's table, and a config of a model type."""
    part = nn.Module()
    part.config = PretrainedConfig()
    part.config.model_type = model_type
    part.blocks = nn.ModuleList(nn.Module() for _ in range(2))
    for block in part.blocks:
        for number, suffix in enumerate(family.roles):
            module = block
            *path, last = f"part{number}.{suffix}".split(".")
            for component in path:
                if not hasattr(module, component):
                    module.add_module(component, nn.Module())
                module = getattr(module, component)
            module.add_module(last, nn.Linear(1, 1))
    return part


@pytest.mark.parametrize("number", range(len(FAMILIES)), ids=[family.name for family in FAMILIES])
def test_the_model_type_at_the_root_rules_the_parts_that_have_no_family_of_their_own(number):
    family, other = FAMILIES[number], FAMILIES[number - 1]
    root, own = family.model_types[0], other.model_types[0]
    model = part_of(family, root)
    model.encoder = part_of(family, "a type without a family")
    model.decoder = part_of(other, own)
    layers = find_layers(model)
    assert len(layers) == 2 * (2 * len(family.roles) + len(other.roles))
    for layer in layers:
        assert layer.role == role_of(own if layer.name.startswith("decoder.") else root, layer.name), layer.name


def test_the_encoder_of_pytorch_is_a_stack():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2, enable_nested_tensor=False)
    assert [(layer.name, layer.role) for layer in find_layers(model)][:3] == [
        ("layers.0.self_attn.out_proj", "attention_output"),
        ("layers.0.linear1", "ffn_in"),
        ("layers.0.linear2", "ffn_out"),
    ]


def test_a_stack_itself_can_be_given():
    assert names_of(classifier().bert.encoder.layer) == [
        name.removeprefix("bert.encoder.layer.") for name in BERT_NAMES
    ]


def test_blocks_of_one_matrix_or_of_strangers_are_no_stack():
    class Chain(nn.Sequential):
        """A container of a class of its own, as one writes for a block of convolutions."""

    model = Plain()
    model.heads = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
    model.pairs = nn.ModuleList(nn.ModuleList(nn.Linear(8, 8) for _ in range(2)) for _ in range(2))
    chains = [kind(nn.Linear(8, 8), nn.Linear(8, 8)) for kind in (nn.Sequential, Chain)]
    model.mixed = nn.ModuleList([Block(), chains[0]])
    model.chains = nn.ModuleList(chains)
    assert names_of(model) == PLAIN_NAMES


def test_blocks_of_two_classes_with_a_base_of_their_own_are_a_stack():
    """Or the language model of a Llama that sees would be left dense, and nobody told, as its vision model is found."""

    class Other(Block):
        pass

    model = Plain()
    model.blocks[1] = Other()
    assert names_of(model) == PLAIN_NAMES


def test_a_list_of_whole_models_is_no_stack():
    """Or their poolers and heads would be pruned."""
    model = nn.Module()
    model.members = nn.ModuleList([classifier(), classifier()])
    assert names_of(model) == [f"members.{i}.{name}" for i in range(2) for name in BERT_NAMES]


def test_albert_runs_its_layer_many_times_and_gives_it_once():
    layers = find_layers(MODELS["albert"]())
    assert len(layers) == 6 and len({id(layer.weight) for layer in layers}) == 6


def test_a_weight_shared_by_two_blocks_comes_once():
    model = Plain()
    model.blocks[1].gate_proj.weight = model.blocks[0].gate_proj.weight
    assert names_of(model) == [name for name in PLAIN_NAMES if name != "blocks.1.gate_proj"]


def test_a_subclass_of_linear_is_a_layer():
    """Pitfall 19."""

    class MyLinear(nn.Linear):
        pass

    model = Plain()
    model.blocks[0].gate_proj = MyLinear(8, 16)
    assert names_of(model) == PLAIN_NAMES


def test_a_frozen_layer_is_found():
    model = Plain().requires_grad_(False)
    assert names_of(model) == PLAIN_NAMES


@pytest.mark.parametrize("owner", ["embed", "head"])
def test_a_weight_tied_to_something_outside_is_never_pruned(owner):
    """Pitfall 31."""
    model = Plain()
    model.blocks[0].gate_proj.weight = getattr(model, owner).weight
    assert names_of(model) == PLAIN_NAMES[1:]
    with pytest.raises(ValueError, match=f"blocks.0.gate_proj is never pruned, because its weight is tied to {owner}"):
        find_layers(model, include="blocks.0.gate_proj")


@pytest.mark.parametrize(
    "name",
    [
        *("gate", "router", "lora_A", "lora_down", "relative_attention_bias", "rel_pos_bias", "gru_rel_pos_linear"),
        *("downsample", "shared_expert_gate", "continuous_position_bias_mlp", "linear_q_adapter_list"),
    ],
)
def test_adapters_routers_positions_and_steps_between_stages_are_never_pruned(name):
    model = Plain()
    model.blocks[1].add_module(name, nn.Linear(8, 8))
    model.blocks[0].add_module("expert", nn.ModuleDict({name: nn.Sequential(nn.Linear(8, 8))}))
    assert names_of(model) == PLAIN_NAMES
    with pytest.raises(ValueError, match=f"blocks.1.{name} is never pruned, because it is an adapter, a router"):
        find_layers(model, exclude=f"blocks.1.{name}")


class Experts(nn.Module):
    """Two stacks of experts that say how they lie, and parameters of other shapes and names."""

    is_transposed = False

    def __init__(self):
        super().__init__()
        shapes = {"gate_up_proj": (4, 16, 8), "down_proj": (4, 8, 16), "heads": (2, 8, 8), "thin": (1, 8, 8)}
        for name, shape in {**shapes, "flat": (4, 8), "deep": (2, 2, 8, 8)}.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))


def test_several_matrices_in_one_parameter_are_a_layer_or_listed_as_dense_and_never_both():
    model = Plain()
    for block in model.blocks:
        block.experts = Experts()
        block.convolution = nn.Conv1d(8, 8, 3)
    known = [f"blocks.{i}.experts.{name}" for i in range(2) for name in ("gate_up_proj", "down_proj")]
    assert sorted(names_of(model)) == sorted([*PLAIN_NAMES, *known])
    assert [*stacked_weights(model)] == ["blocks.0.experts.heads", "blocks.1.experts.heads"]
    assert {*stacked_weights(model)} <= left_dense(model).keys() and not left_dense(model).keys() & {*known}


def test_convolutions_are_no_stacks_of_matrices():
    model = MODELS["squeezebert"]()
    assert stacked_weights(model) == {} and not left_dense(model).keys() & set(names_of(model))


def test_a_weight_that_is_computed_is_refused_by_name():
    model = Plain()
    parametrizations.orthogonal(model.blocks[1].gate_proj)
    with pytest.raises(ValueError, match=r"weight of blocks.1.gate_proj is not a parameter of its own.*Remove that"):
        find_layers(model)


class LowRank(nn.Module):
    """What PEFT puts in the place of a layer: the layer itself, and factors in dicts by the adapter's name."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base_layer.in_features, 4, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(4, base_layer.out_features, bias=False)})


@pytest.mark.parametrize("include", [None, "ffn", "attention.self.query", "re:.*"])
def test_the_factors_of_an_adapter_are_never_pruned(include):
    """Pitfall 25, with or without PEFT. Their sides are multiples of 4, so that a pattern would fit them."""
    model = classifier()
    for block in model.bert.encoder.layer:
        block.attention.self.query = LowRank(block.attention.self.query)
        block.intermediate.dense = LowRank(block.intermediate.dense)
    assert names_of(model, include=include) == names_of(classifier(), include=include)
    with pytest.raises(ValueError, match=r"lora_A\.default is never pruned, because it is an adapter, a router"):
        find_layers(model, include="lora_A")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # read by PEFT
def test_lora_wraps_a_target_and_is_none():
    """Pitfall 25: the layer under an adapter is found under its own name, the adapter never."""
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(classifier(), peft.LoraConfig(target_modules=["query", "dense"], r=2))
    found = find_layers(model)
    assert [layer.name for layer in found] == BERT_NAMES
    roles = ["query", "key", "value", "attention_output", "ffn_in", "ffn_out"]
    assert [layer.role for layer in found] == 2 * roles
    assert len(names_of(model, include="attention.self.query")) == 2


# -- nothing to prune --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: classifier("ibert"), "in this IBertForSequenceClassification.*classifier.dense, classifier.out_proj"),
        (lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), "in this Sequential.* are: 0, 2[.]"),
        (lambda: nn.Sequential(nn.ReLU()), "in this Sequential.* are: none[.]"),
        (lambda: nn.ModuleList(), "in this ModuleList.* are: none[.]"),
        (lambda: nn.Sequential(*(nn.Linear(8, 8) for _ in range(9))), "and 4 more[.]"),
    ],
    ids=["ibert", "sequential", "no linear", "empty", "many"],
)
def test_a_model_without_a_stack_is_an_error_that_lists_what_it_has(build, message):
    with pytest.raises(ValueError, match=f"Nothing to prune {message}" if message.startswith("in") else message):
        find_layers(build())


def test_of_packed_layers_it_is_said_how_to_load_what_can_be_pruned():
    model = nn.Sequential(nn.Identity(), nn.ReLU())
    model[0].register_buffer("weight_nxm_idx", torch.zeros(1, dtype=torch.uint8))
    says = r"layers of this Sequential are packed.*quantization_config=nxm_hf.NxMPackedConfig\(dequantize=True\)"
    with pytest.raises(ValueError, match=says):
        find_layers(model)


def test_a_stack_of_tied_weights_leaves_nothing():
    model = Plain()
    for block in model.blocks:
        block.gate_proj.weight = block.down_proj.weight = model.embed.weight
    with pytest.raises(ValueError, match="Nothing to prune in this Plain"):
        find_layers(model)
