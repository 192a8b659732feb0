"""GPT-NeoX, Bloom, Falcon and Persimmon: query, key and value in one, feed-forward named by its width."""

from nxm_hf.families.base import Family

GPT_NEOX = Family(
    name="gpt_neox",
    model_types=("bloom", "falcon", "gpt_neox", "persimmon"),
    roles={
        "query_key_value": "qkv",
        "attention.dense": "attention_output",
        "self_attention.dense": "attention_output",
        "self_attn.dense": "attention_output",
        "mlp.dense_h_to_4h": "ffn_in",
        "mlp.dense_4h_to_h": "ffn_out",
    },
)
