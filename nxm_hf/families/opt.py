"""OPT and the decoders with its names, and Phi, which calls its attention output `dense`."""

from nxm_hf.families.base import Family

OPT = Family(
    name="opt",
    model_types=("biogpt", "opt", "phi", "xglm"),
    roles={
        "self_attn.q_proj": "query",
        "self_attn.k_proj": "key",
        "self_attn.v_proj": "value",
        "self_attn.out_proj": "attention_output",
        "self_attn.dense": "attention_output",
        "fc1": "ffn_in",
        "fc2": "ffn_out",
    },
)
