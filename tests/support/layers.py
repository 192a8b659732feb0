"""Plain models whose layers are looked for, and tiny models of the families."""

from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from nxm_hf.layers.find import find_layers

TEXT = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
TEXT |= dict(vocab_size=50, max_position_embeddings=32, pad_token_id=0)
GPT2 = {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
T5 = {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "pad_token_id": 0}
BERT_ATTENTION = ("self.query", "self.key", "self.value", "output.dense")
BERT_ENDS = [*(f"attention.{end}" for end in BERT_ATTENTION), "intermediate.dense", "output.dense"]
BERT_NAMES = [f"bert.encoder.layer.{i}.{end}" for i in range(2) for end in BERT_ENDS]


def classifier(model_type="bert", **config):
    """Return a tiny classifier of a family."""
    return AutoModelForSequenceClassification.from_config(AutoConfig.for_model(model_type, **{**TEXT, **config}))


def names_of(*args, **kwargs):
    """Return the names of the layers that `find_layers` finds."""
    return [layer.name for layer in find_layers(*args, **kwargs)]


class Block(nn.Module):
    """A block in no family's names."""

    def __init__(self, width=8):
        super().__init__()
        self.gate_proj = nn.Linear(width, 2 * width)
        self.down_proj = nn.Linear(2 * width, width)


class Plain(nn.Module):
    """A plain PyTorch model with an embedding, two blocks and a head."""

    def __init__(self, block=Block):
        super().__init__()
        self.embed = nn.Embedding(16, 8)
        self.blocks = nn.ModuleList(block() for _ in range(2))
        self.head = nn.Linear(8, 16, bias=False)


PLAIN_NAMES = ["blocks.0.gate_proj", "blocks.0.down_proj", "blocks.1.gate_proj", "blocks.1.down_proj"]
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
