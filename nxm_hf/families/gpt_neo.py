"""GPT-Neo: separate projections inside `attn.attention`."""

from nxm_hf.families.base import Family

GPT_NEO = Family(
    name="gpt_neo",
    model_types=("gpt_neo",),
    roles={
        "attn.attention.q_proj": "query",
        "attn.attention.k_proj": "key",
        "attn.attention.v_proj": "value",
        "attn.attention.out_proj": "attention_output",
        "mlp.c_fc": "ffn_in",
        "mlp.c_proj": "ffn_out",
    },
)
