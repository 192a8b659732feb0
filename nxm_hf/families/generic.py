"""The layer names that most models use: for plain PyTorch, remote code and models without a family."""

from nxm_hf.families.base import Family

_QUERY = ("query", "self.query", "q_proj", "q_lin", "to_q", "wq")
_KEY = ("key", "self.key", "k_proj", "k_lin", "to_k", "wk")
_VALUE = ("value", "self.value", "v_proj", "v_lin", "to_v", "wv")
_SUFFIXES = {
    "query": _QUERY,
    "key": _KEY,
    "value": _VALUE,
    "qkv": ("qkv", "qkv_proj", "Wqkv", "c_attn", "query_key_value"),
    "attention_output": (
        "o_proj",
        "out_proj",
        "out_lin",
        "attn.c_proj",
        "attn.Wo",
        "attention.dense",
        "self_attn.dense",
        "attention.output.dense",
    ),
    "ffn_in": (
        "fc1",
        "lin1",
        "linear1",
        "c_fc",
        "fc_in",
        "wi",
        "wi_0",
        "wi_1",
        "w1",
        "w3",
        "gate_proj",
        "up_proj",
        "gate_up_proj",
        "intermediate.dense",
        "dense_h_to_4h",
    ),
    "ffn_out": (
        "fc2",
        "lin2",
        "linear2",
        "mlp.c_proj",
        "fc_out",
        "wo",
        "w2",
        "down_proj",
        "output.dense",
        "dense_4h_to_h",
    ),
}
_CROSS = ("crossattention", "cross_attention", "cross_attn", "encoder_attn", "multihead_attn")
_CROSS_SUFFIXES = {
    "cross_query": _QUERY,
    "cross_key": _KEY,
    "cross_value": _VALUE,
    "cross_output": ("o_proj", "out_proj", "out_lin", "output.dense"),
}

GENERIC = Family(
    name="generic",
    model_types=(),
    roles={suffix: role for role, suffixes in _SUFFIXES.items() for suffix in suffixes}
    | {
        f"{cross}.{suffix}": role
        for cross in _CROSS
        for role, suffixes in _CROSS_SUFFIXES.items()
        for suffix in suffixes
    },
)
