"""The memory that is planned is what trainings hold."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from nxm_hf import NxMConfig, attach, recipes
from nxm_hf.analysis import state_bytes, training_memory
from nxm_hf.patterns import parse
from tests.support.models import make_bert
from tests.support.training import eventful

PLANNED = {  # shapes of Llama
    "7 B": dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, vocab_size=32000),
    "70 B": dict(hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, vocab_size=128256)
    | dict(num_attention_heads=64, num_key_value_heads=8),
}
HOWTO = Path(__file__).parents[2] / "docs" / "howto" / "fsdp.md"


@pytest.mark.parametrize(
    ("recipe", "pattern"),
    [*((name, "2:4") for name in recipes.names()), ("ste", "2:4-transposable"), ("admm", "unstructured:0.5")],
)
def test_a_training_holds_the_state_that_is_planned(recipe, pattern):
    config = eventful(recipe, pattern=pattern)
    config = config.replace(scores="fisher") if recipe == "admm" else config
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2, enable_nested_tensor=False)
    optimizer = torch.optim.AdamW(model.parameters())
    engine, most = attach(model, optimizer, config, total_steps=8), 0
    for _ in range(8):
        model(torch.randn(3, 2, 8)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        matrices = [t for name, t in engine.tensors().items() if t.ndim == 2 and not name.endswith("/weight")]
        most = max(most, sum(t.nbytes for t in matrices))
    memory = training_memory(model, config)
    assert memory.state == most
    assert memory.deployed == 4 * sum(target.numel for target in engine.plan.targets)
    assert memory.weights == sum(p.nbytes for p in model.parameters())
    assert memory.moments == 2 * memory.weights and memory.gradients == memory.weights


def test_a_model_without_weights_is_planned_and_shards_divide_it():
    with torch.device("meta"):
        model = make_bert(hidden_size=64, intermediate_size=256)
    one, two = (training_memory(model, "sr-ste", processes) for processes in (1, 2))
    assert two.state * 2 == one.state and one.total / 2 <= two.total < one.total / 2 + 100


def test_the_table_of_the_howto_is_that_of_the_recipes():
    text = HOWTO.read_text().split("| recipe | bytes of state |\n|---|---|\n")[1].split("\n\n")[0]
    shown = {name: int(row.split("|")[2]) for row in text.splitlines() for name in re.findall(r"`([\w-]+)`", row)}
    named = [name for name in recipes.names() if name != "dense"]
    assert shown == {name: state_bytes(NxMConfig(name), parse("2:4")) for name in named}


def planned_row(name: str, recipe: str) -> str:
    """Return a row of the table of the how-to: the GiB that each of several numbers of processes holds."""
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**PLANNED[name]))
    planned = [training_memory(model, recipe, processes) for processes in (8, 16, 32, 64)]
    held = [f"{(memory.total - memory.deployed) / 2**30:.1f}" for memory in planned]
    return f"| {' | '.join((name, f'`{recipe}`', *held))} |"


@pytest.mark.parametrize("name", PLANNED)
def test_the_plan_of_the_howto_is_computed(name):
    rows = [planned_row(name, recipe) for recipe in ("asp", "admm", "sr-ste")]
    assert "\n".join(rows) in HOWTO.read_text()
