"""BART and the sequence-to-sequence models with its names."""

from nxm_hf.families.base import Family

BART = Family(
    name="bart",
    model_types=(
        "bart",
        "blenderbot",
        "blenderbot-small",
        "m2m_100",
        "marian",
        "mbart",
        "mvp",
        "pegasus",
        "pegasus_x",
        "plbart",
        "speech_to_text",
        "whisper",
    ),
    roles={
        "self_attn.q_proj": "query",
        "self_attn.k_proj": "key",
        "self_attn.v_proj": "value",
        "self_attn.out_proj": "attention_output",
        "encoder_attn.q_proj": "cross_query",
        "encoder_attn.k_proj": "cross_key",
        "encoder_attn.v_proj": "cross_value",
        "encoder_attn.out_proj": "cross_output",
        "fc1": "ffn_in",
        "fc2": "ffn_out",
    },
)
