"""GPT-2 and its kin, most of them made of Conv1D, a Linear that stores its matrix transposed."""

from nxm_hf.families.base import Family

GPT2 = Family(
    name="gpt2",
    model_types=("gpt2", "gpt_bigcode", "openai-gpt"),
    roles={
        "attn.c_attn": "qkv",
        "attn.c_proj": "attention_output",
        "crossattention.q_attn": "cross_query",
        # Key and value in one: "qkv" is the role of what is fused, in cross attention too.
        "crossattention.c_attn": "qkv",
        "crossattention.c_proj": "cross_output",
        "mlp.c_fc": "ffn_in",
        "mlp.c_proj": "ffn_out",
    },
)
