"""Layers: the rule that finds them, their matrices, and what `include` and `exclude` mean."""

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from nxm_hf import NxMConfig, attach
from nxm_hf.layers.find import Layer, find_layers, left_dense, stacked_weights
from nxm_hf.layers.plan import Plan

TEXT = {
    **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
    **{"vocab_size": 50, "max_position_embeddings": 32, "pad_token_id": 0},
}
GPT2 = {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
T5 = {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "pad_token_id": 0}
BERT_ENDS = (
    *("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"),
    *("intermediate.dense", "output.dense"),
)
BERT_NAMES = [f"bert.encoder.layer.{i}.{end}" for i in range(2) for end in BERT_ENDS]


def classifier(model_type="bert", **config):
    return AutoModelForSequenceClassification.from_config(AutoConfig.for_model(model_type, **{**TEXT, **config}))


def names(*args, **kwargs):
    return [layer.name for layer in find_layers(*args, **kwargs)]


class Block(nn.Module):
    """A block in no family's names."""

    def __init__(self, width=8):
        super().__init__()
        self.gate_proj = nn.Linear(width, 2 * width)
        self.down_proj = nn.Linear(2 * width, width)


class Toy(nn.Module):
    """A plain PyTorch model with an embedding, two blocks and a head."""

    def __init__(self, block=Block):
        super().__init__()
        self.embed = nn.Embedding(16, 8)
        self.blocks = nn.ModuleList(block() for _ in range(2))
        self.head = nn.Linear(8, 16, bias=False)


TOY_NAMES = ["blocks.0.gate_proj", "blocks.0.down_proj", "blocks.1.gate_proj", "blocks.1.down_proj"]


# What a layer's matrix is


MODELS = {
    "bert": lambda: classifier(),
    "distilbert": lambda: classifier("distilbert", dim=16, n_layers=2, n_heads=2, hidden_dim=32),
    "albert": lambda: classifier("albert", embedding_size=8),
    "squeezebert": lambda: classifier(
        "squeezebert", embedding_size=16, q_groups=2, k_groups=2, v_groups=1, intermediate_groups=2, output_groups=2
    ),
    "gpt2": lambda: AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **GPT2)),
    "llama": lambda: AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **TEXT)),
    "t5": lambda: AutoModel.from_config(AutoConfig.for_model("t5", **T5)),
}


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
    model = Toy()
    layer = find_layers(model)[0]
    model.blocks[0].gate_proj.weight = nn.Parameter(torch.zeros(16, 8))
    assert layer.weight is model.blocks[0].gate_proj.weight


def test_layers_are_found_without_numbers():
    with torch.device("meta"):
        model = classifier()
    assert [layer.shape for layer in find_layers(model, include="ffn_in")] == [(32, 16), (32, 16)]


# The rule


def test_bert_gives_its_blocks_in_order():
    assert names(classifier()) == BERT_NAMES


def test_a_plain_model_needs_no_config():
    layers = find_layers(Toy())
    assert [(layer.name, layer.role) for layer in layers] == [
        (name, "ffn_in" if "gate" in name else "ffn_out") for name in TOY_NAMES
    ]


def test_a_config_that_is_a_dict_or_nothing_gives_the_usual_names():
    model = Toy()
    for config in ({"model_type": "bert"}, None, "bert"):
        model.config = config
        assert find_layers(model)[0].role == "ffn_in"


def test_a_part_with_a_config_of_its_own_has_the_roles_of_its_family():
    model = Toy()
    model.config = AutoConfig.for_model("bert")
    model.decoder = AutoModel.from_config(AutoConfig.for_model("t5", **T5)).decoder
    roles = {layer.name: layer.role for layer in find_layers(model)}
    assert roles["blocks.0.gate_proj"] == "ffn_in"
    assert roles["decoder.block.0.layer.1.EncDecAttention.q"] == "cross_query"


def test_the_encoder_of_pytorch_is_a_stack():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2, enable_nested_tensor=False)
    assert [(layer.name, layer.role) for layer in find_layers(model)][:3] == [
        ("layers.0.self_attn.out_proj", "attention_output"),
        ("layers.0.linear1", "ffn_in"),
        ("layers.0.linear2", "ffn_out"),
    ]


def test_a_stack_itself_can_be_given():
    assert names(classifier().bert.encoder.layer) == [name.removeprefix("bert.encoder.layer.") for name in BERT_NAMES]


def test_blocks_of_one_matrix_or_of_strangers_are_no_stack():
    class Chain(nn.Sequential):
        """A container of a class of its own, as one writes for a block of convolutions."""

    model = Toy()
    model.heads = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
    model.pairs = nn.ModuleList(nn.ModuleList(nn.Linear(8, 8) for _ in range(2)) for _ in range(2))
    chains = [kind(nn.Linear(8, 8), nn.Linear(8, 8)) for kind in (nn.Sequential, Chain)]
    model.mixed = nn.ModuleList([Block(), chains[0]])
    model.chains = nn.ModuleList(chains)
    assert names(model) == TOY_NAMES


def test_blocks_of_two_classes_with_a_base_of_their_own_are_a_stack():
    """Or the language model of a Llama that sees would be left dense, and nobody told, as its vision model is found."""

    class Other(Block):
        pass

    model = Toy()
    model.blocks[1] = Other()
    assert names(model) == TOY_NAMES


def test_a_list_of_whole_models_is_no_stack():
    """Or their poolers and heads would be pruned."""
    model = nn.Module()
    model.members = nn.ModuleList([classifier(), classifier()])
    assert names(model) == [f"members.{i}.{name}" for i in range(2) for name in BERT_NAMES]


def test_albert_runs_its_layer_many_times_and_gives_it_once():
    layers = find_layers(MODELS["albert"]())
    assert len(layers) == 6 and len({id(layer.weight) for layer in layers}) == 6


def test_a_weight_shared_by_two_blocks_comes_once():
    model = Toy()
    model.blocks[1].gate_proj.weight = model.blocks[0].gate_proj.weight
    assert names(model) == [name for name in TOY_NAMES if name != "blocks.1.gate_proj"]


def test_a_subclass_of_linear_is_a_layer():
    """Pitfall 19."""

    class MyLinear(nn.Linear):
        pass

    model = Toy()
    model.blocks[0].gate_proj = MyLinear(8, 16)
    assert names(model) == TOY_NAMES


def test_a_frozen_layer_is_found():
    model = Toy().requires_grad_(False)
    assert names(model) == TOY_NAMES


@pytest.mark.parametrize("owner", ["embed", "head"])
def test_a_weight_tied_to_something_outside_is_never_pruned(owner):
    """Pitfall 31."""
    model = Toy()
    model.blocks[0].gate_proj.weight = getattr(model, owner).weight
    assert names(model) == TOY_NAMES[1:]
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
    model = Toy()
    model.blocks[1].add_module(name, nn.Linear(8, 8))
    model.blocks[0].add_module("expert", nn.ModuleDict({name: nn.Sequential(nn.Linear(8, 8))}))
    assert names(model) == TOY_NAMES
    with pytest.raises(ValueError, match=f"blocks.1.{name} is never pruned, because it is an adapter, a router"):
        find_layers(model, exclude=f"blocks.1.{name}")


def test_experts_in_one_parameter_stay_dense_and_that_is_said(caplog):
    """Or most of a mixture of experts would be left dense while the log speaks of a density of one half."""
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("mixtral", **TEXT, num_key_value_heads=1, num_local_experts=2)
    )
    experts = [f"model.layers.{i}.mlp.experts.{end}" for i in range(2) for end in ("gate_up_proj", "down_proj")]
    why = "it holds several matrices, of experts or of heads, in one parameter"
    assert {name: said for name, said in left_dense(model).items() if "experts" in name} == dict.fromkeys(experts, why)
    with pytest.raises(ValueError, match=f"experts.gate_up_proj is never pruned, because {why}"):
        find_layers(model, include="experts")
    assert set(Plan.of(model, NxMConfig("asp")).skipped) == set(experts)
    assert not Plan.of(model, NxMConfig("asp", include="attention")).skipped  # nobody asked for more
    with caplog.at_level("WARNING", "nxm_hf"):
        attach(model, torch.optim.SGD(model.parameters(), 0.1), "asp", total_steps=2)
    assert f"Left dense: {experts[0]}: {why}; {experts[1]}: {why}; " in caplog.text


def test_convolutions_are_no_stacks_of_matrices():
    model = MODELS["squeezebert"]()
    assert stacked_weights(model) == {} and not left_dense(model).keys() & set(names(model))


def test_a_weight_that_is_computed_is_refused_by_name():
    model = Toy()
    parametrizations.orthogonal(model.blocks[1].gate_proj)
    with pytest.raises(ValueError, match=r"weight of blocks.1.gate_proj is not a parameter of its own.*Remove that"):
        find_layers(model)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # read by PEFT
def test_lora_wraps_a_target_and_is_none():
    """Pitfall 25: the layer under an adapter is found under its own name, the adapter never."""
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(classifier(), peft.LoraConfig(target_modules=["query", "dense"], r=2))
    found = find_layers(model)
    wrapped = ("query", "dense")
    assert [layer.name for layer in found] == [
        f"base_model.model.{name}{'.base_layer' if name.endswith(wrapped) else ''}" for name in BERT_NAMES
    ]
    roles = ["query", "key", "value", "attention_output", "ffn_in", "ffn_out"]
    assert [layer.role for layer in found] == 2 * roles
    assert len(names(model, include="attention.self.query")) == 2


# Wrappers


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
    model.module = Toy()
    assert names(model) == [f"module.{name}" for name in TOY_NAMES]


# Nothing to prune


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


def test_a_stack_of_tied_weights_leaves_nothing():
    model = Toy()
    for block in model.blocks:
        block.gate_proj.weight = block.down_proj.weight = model.embed.weight
    with pytest.raises(ValueError, match="Nothing to prune in this Toy"):
        find_layers(model)


# include and exclude


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("bert.encoder.layer.0.attention.self.query", BERT_NAMES[:1]),
        ("bert.encoder.layer.0", BERT_NAMES[:6]),
        ("encoder.layer.0", BERT_NAMES[:6]),
        ("layer.1", BERT_NAMES[6:]),
        ("attention.self.query", [BERT_NAMES[0], BERT_NAMES[6]]),
        ("attention.output.dense", [BERT_NAMES[3], BERT_NAMES[9]]),
        ("query", [BERT_NAMES[0], BERT_NAMES[6]]),
        ("attention_output", [BERT_NAMES[3], BERT_NAMES[9]]),
        ("attention", BERT_NAMES[:4] + BERT_NAMES[6:10]),
        ("ffn", BERT_NAMES[4:6] + BERT_NAMES[10:]),
        ("encoder.layer.1.", BERT_NAMES[6:]),
        (r"re:layer\.1\..*dense$", BERT_NAMES[9:]),
        ("re:query|key", BERT_NAMES[0:2] + BERT_NAMES[6:8]),
        (["ffn_out", "query", "layer.0"], [*BERT_NAMES[:6], BERT_NAMES[6], BERT_NAMES[11]]),
        (("key",), [BERT_NAMES[1], BERT_NAMES[7]]),
    ],
    ids=str,
)
def test_an_entry_means_the_same_in_include_and_exclude(entry, expected):
    """Names of leaves and of containers are honoured. Pitfall 24."""
    model = classifier()
    assert names(model, include=entry) == expected
    assert names(model, exclude=entry) == [name for name in BERT_NAMES if name not in expected]


def test_a_name_ends_where_its_component_ends():
    model = classifier(num_hidden_layers=11)
    assert all(".layer.1." in name for name in names(model, include="encoder.layer.1"))
    assert len(names(model, include="encoder.layer.1")) == 6


def test_include_comes_first_and_exclude_takes_from_it():
    assert names(classifier(), include="attention", exclude=["layer.0", "value"]) == [
        name for name in BERT_NAMES[6:10] if not name.endswith("value")
    ]


def test_a_role_is_not_a_part_of_a_name():
    """MobileBERT calls a bottleneck `attention`; the word means the group."""
    model = classifier("mobilebert", embedding_size=16, true_hidden_size=16, intra_bottleneck_size=16)
    assert not any("bottleneck" in name for name in names(model, include="attention"))
    assert any("bottleneck" in name for name in names(model, include="other"))


@pytest.mark.parametrize("option", ["include", "exclude"])
@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("attention.self.qury", "='attention.self.qury' matches no layer of this BertForSequenceClassification. Roles"),
        ("attention.self.qury", "closest names: attention.self.query"),
        ("quary", "Roles here: query, key, value, attention_output, ffn_in, ffn_out; closest names: query"),
        ("bert.encoder.layer.7", "closest names: bert.encoder.layer.[01], bert.encoder.layer.[01]"),
        ("qkv", "='qkv' matches no layer.*Roles here: query"),
        ("", "='' matches no layer"),
        ("zzzzzz", "closest names: bert.encoder.layer.0.attention.self.query[.]$"),
        ("re:nonesuch", "='re:nonesuch' matches no layer"),
        ("re:layer.(", r"='re:layer\.\(' is not a regular expression: missing \)"),
        ("classifier", "='classifier' matches no layer that can be pruned: classifier is never pruned, because it st"),
        ("pooler", "bert.pooler.dense is never pruned, because it stands outside the repeated blocks"),
        ("bert.pooler.dense", "bert.pooler.dense is never pruned"),
        ("classifier.", "classifier is never pruned"),
        ("re:^classifier$", "classifier is never pruned"),
        ("word_embeddings", "bert.embeddings.word_embeddings is never pruned, because it is an embedding"),
        ("embeddings", "word_embeddings is never.*position_embeddings is never.*token_type_embeddings is never"),
    ],
)
def test_an_entry_that_means_no_layer_says_why(option, entry, message):
    with pytest.raises(ValueError, match=message) as error:
        find_layers(classifier(), **{option: ["query", entry]})
    assert str(error.value).startswith(f"{option}={entry!r}")


def test_a_tied_head_is_named_with_what_it_is_tied_to():
    """Pitfall 31."""
    model = MODELS["gpt2"]()
    with pytest.raises(ValueError, match=r"lm_head is never pruned, because its weight is tied to transformer.wte"):
        find_layers(model, include="lm_head")


def test_an_entry_that_is_no_string_is_a_type_error():
    with pytest.raises(TypeError, match="include takes layer names, roles and 're:' patterns as strings; got 3"):
        find_layers(classifier(), include=[3])


@pytest.mark.parametrize("choice", [{"include": []}, {"exclude": ["attention", "ffn"]}])
def test_nothing_left_is_an_error_that_says_what_there_was(choice):
    with pytest.raises(
        ValueError, match=r"Nothing to prune in this BertForSeq.*none of its 12 layers. Roles here: que"
    ):
        find_layers(classifier(), **choice)


def test_a_layer_is_a_value():
    first, again = (find_layers(model)[0] for model in [Toy()] * 2)
    assert isinstance(first, Layer)
    other = find_layers(Toy())[0]
    assert first.name == again.name == other.name and first != other
