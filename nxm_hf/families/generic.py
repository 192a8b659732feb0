"""The names that most models use, for models of no family: plain PyTorch, remote code, families yet to be written."""

from nxm_hf.families.base import Family

_QUERY = ("query", "self.query", "q_proj", "q_lin", "to_q", "wq")
_KEY = ("key", "self.key", "k_proj", "k_lin", "to_k", "wk")
_VALUE = ("value", "self.value", "v_proj", "v_lin", "to_v", "wv")
_ENDS = {
    "query": _QUERY,
    "key": _KEY,
    "value": _VALUE,
    "qkv": ("qkv", "qkv_proj", "Wqkv", "c_attn", "query_key_value"),
    "attention_output": (
        *("o_proj", "out_proj", "out_lin", "attn.c_proj", "attn.Wo"),
        *("attention.dense", "self_attn.dense", "attention.output.dense"),
    ),
    "ffn_in": (
        *("fc1", "lin1", "linear1", "c_fc", "fc_in", "wi", "wi_0", "wi_1", "w1", "w3"),
        *("gate_proj", "up_proj", "gate_up_proj", "intermediate.dense", "dense_h_to_4h"),
    ),
    "ffn_out": (
        *("fc2", "lin2", "linear2", "mlp.c_proj", "fc_out", "wo", "w2"),
        *("down_proj", "output.dense", "dense_4h_to_h"),
    ),
}
_CROSS = ("crossattention", "cross_attention", "cross_attn", "encoder_attn", "multihead_attn")
_CROSS_ENDS = {
    "cross_query": _QUERY,
    "cross_key": _KEY,
    "cross_value": _VALUE,
    "cross_output": ("o_proj", "out_proj", "out_lin", "output.dense"),
}

GENERIC = Family(
    name="generic",
    model_types=(),
    roles={end: role for role, ends in _ENDS.items() for end in ends}
    | {f"{cross}.{end}": role for cross in _CROSS for role, ends in _CROSS_ENDS.items() for end in ends},
)
