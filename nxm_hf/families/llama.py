"""Llama and the decoders and encoders with its names. Gate and up projection both lead into the feed-forward part."""

from nxm_hf.families.base import Family

LLAMA = Family(
    name="llama",
    model_types=(
        *("apertus", "arcee", "bitnet", "cohere", "ernie4_5", "eurobert", "exaone4", "gemma", "gemma2"),
        *("gemma3_text", "glm", "granite", "gte", "helium", "hunyuan_v1_dense", "llama", "ministral", "mistral"),
        *("mixtral", "nemotron", "nomic_bert", "olmo", "olmo2", "olmo3", "olmoe", "phi3", "qwen2", "qwen2_moe"),
        *("qwen3", "qwen3_moe", "seed_oss", "smollm3", "stablelm"),
    ),
    roles={
        "self_attn.q_proj": "query",
        "self_attn.k_proj": "key",
        "self_attn.v_proj": "value",
        "self_attn.qkv_proj": "qkv",
        "self_attn.o_proj": "attention_output",
        "gate_proj": "ffn_in",
        "up_proj": "ffn_in",
        "gate_up_proj": "ffn_in",
        "down_proj": "ffn_out",
    },
)
