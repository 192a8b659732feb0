"""Funnel Transformer: blocks of layers, each block half as long as the one before."""

from nxm_hf.families.base import Family

FUNNEL = Family(
    name="funnel",
    model_types=("funnel",),
    roles={
        "attention.q_head": "query",
        "attention.k_head": "key",
        "attention.v_head": "value",
        "attention.post_proj": "attention_output",
        "ffn.linear_1": "ffn_in",
        "ffn.linear_2": "ffn_out",
    },
)
