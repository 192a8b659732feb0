"""ModernBERT, encoder and decoder: `Wi` holds the gate and the input of the feed-forward part in one."""

from nxm_hf.families.base import Family

MODERNBERT = Family(
    name="modernbert",
    model_types=("modernbert", "modernbert-decoder"),
    roles={
        "attn.Wqkv": "qkv",
        "attn.q_proj": "query",
        "attn.k_proj": "key",
        "attn.v_proj": "value",
        "attn.Wo": "attention_output",
        "mlp.Wi": "ffn_in",
        "mlp.Wo": "ffn_out",
    },
)
