"""wav2vec 2.0 and the speech encoders with its names."""

from nxm_hf.families.base import Family

WAV2VEC2 = Family(
    name="wav2vec2",
    model_types=("hubert", "wav2vec2", "wavlm"),
    roles={
        "attention.q_proj": "query",
        "attention.k_proj": "key",
        "attention.v_proj": "value",
        "attention.out_proj": "attention_output",
        "feed_forward.intermediate_dense": "ffn_in",
        "feed_forward.output_dense": "ffn_out",
    },
)
