"""SqueezeBERT: its matrices are grouped convolutions of width one."""

from nxm_hf.families.base import Family

SQUEEZEBERT = Family(
    name="squeezebert",
    model_types=("squeezebert",),
    roles={
        "attention.query": "query",
        "attention.key": "key",
        "attention.value": "value",
        "post_attention.conv1d": "attention_output",
        "intermediate.conv1d": "ffn_in",
        "output.conv1d": "ffn_out",
    },
)
