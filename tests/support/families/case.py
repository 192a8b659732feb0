"""A tiny model of each kind: how to build it, and the layers that are expected in it."""

from collections import Counter
from dataclasses import dataclass

import pytest
import torch
import transformers
from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.support.families.blocks import BERT, VIT

# The smallest configs, with the argument names of each kind of model.
WIDTH = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
TEXT = {**WIDTH, "num_hidden_layers": 2, "vocab_size": 99, "max_position_embeddings": 64}
DECODER = {**TEXT, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
GPT = {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
T5_SIZE = {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
BART_SIZE = {
    **{"vocab_size": 99, "d_model": 32, "max_position_embeddings": 64, "pad_token_id": 1},
    **{f"{side}_layers": 2 for side in ("encoder", "decoder")},
    **{f"{side}_attention_heads": 4 for side in ("encoder", "decoder")},
    **{f"{side}_ffn_dim": 64 for side in ("encoder", "decoder")},
}
IMAGE = {**WIDTH, "num_hidden_layers": 2, "image_size": 32, "patch_size": 8}
SWIN_SIZE = {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2]}
XLM_SIZE = {"vocab_size": 99, "emb_dim": 32, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64}
SPEECH = {
    **{**WIDTH, "num_hidden_layers": 2, "vocab_size": 99},
    **{"num_conv_pos_embedding_groups": 4, "num_conv_pos_embeddings": 16},
}


@dataclass(frozen=True)
class Case:
    """A tiny model: its config, which head, its stacks (prefix, block, how many), and the Linear layers left out."""

    model_type: str
    head: str
    config: dict
    stacks: tuple[tuple[str, str, int], ...]
    left_out: str = ""
    label: str = ""

    def __str__(self) -> str:
        return self.label or self.model_type


def encoder(model_type: str, prefix: str, block: str = BERT, left_out: str = "", config: dict = TEXT, **more) -> Case:
    """A text classifier with one stack of two blocks."""
    return Case(model_type, "SequenceClassification", config, ((prefix, block, 2),), left_out, **more)


def decoder(
    model_type: str, prefix: str, block: str, left_out: str = "lm_head", config: dict = DECODER, **more
) -> Case:
    """A language model with one stack of two blocks."""
    return Case(model_type, "CausalLM", config, ((prefix, block, 2),), left_out, **more)


def seq2seq(model_type: str, stacks: tuple[tuple[str, str], ...], config: dict, **more) -> Case:
    """A translator with two blocks in each stack."""
    return Case(model_type, "Seq2SeqLM", config, tuple((*stack, 2) for stack in stacks), "lm_head", **more)


def image(model_type: str, prefix: str, block: str = VIT, left_out: str = "classifier", config: dict = IMAGE) -> Case:
    """An image classifier with one stack of two blocks."""
    return Case(model_type, "ImageClassification", config, ((prefix, block, 2),), left_out)


def template(name: str) -> str:
    """The name with `#` for every number that is a whole component."""
    return ".".join("#" if part.isdigit() else part for part in name.split("."))


def expected(case: Case) -> Counter:
    """(template, role) -> how many, from the typed tables."""
    rows = Counter()
    for prefix, block, count in case.stacks:
        for line in filter(str.strip, block.splitlines()):
            end, role, *times = line.split()
            rows[f"{prefix}.{end}", role] += count * int(times[0] if times else 1)
    return rows


def build(case: Case) -> torch.nn.Module:
    """The model on the meta device: names and shapes, no numbers."""
    if case.model_type not in CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {case.model_type}")
    config = AutoConfig.for_model(case.model_type, **case.config)
    with torch.device("meta"):
        return getattr(transformers, f"AutoModel{'For' if case.head else ''}{case.head}").from_config(config)
