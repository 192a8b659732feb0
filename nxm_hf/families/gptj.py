"""GPT-J, and CodeGen, which fuses its query, key and value."""

from nxm_hf.families.base import Family

GPTJ = Family(
    name="gptj",
    model_types=("codegen", "gptj"),
    roles={
        "attn.q_proj": "query",
        "attn.k_proj": "key",
        "attn.v_proj": "value",
        "attn.qkv_proj": "qkv",
        "attn.out_proj": "attention_output",
        "mlp.fc_in": "ffn_in",
        "mlp.fc_out": "ffn_out",
    },
)
