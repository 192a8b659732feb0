"""The two towers of CLIP and SigLIP."""

from nxm_hf.families.base import Family

CLIP = Family(
    name="clip",
    model_types=(
        "clip",
        "clip_text_model",
        "clip_vision_model",
        "siglip",
        "siglip_text_model",
        "siglip_vision_model",
    ),
    roles={
        "self_attn.q_proj": "query",
        "self_attn.k_proj": "key",
        "self_attn.v_proj": "value",
        "self_attn.out_proj": "attention_output",
        "mlp.fc1": "ffn_in",
        "mlp.fc2": "ffn_out",
    },
)
