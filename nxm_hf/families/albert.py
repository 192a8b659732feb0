"""ALBERT: one group of layers, run many times."""

from nxm_hf.families.base import Family

ALBERT = Family(
    name="albert",
    model_types=("albert",),
    roles={
        "attention.query": "query",
        "attention.key": "key",
        "attention.value": "value",
        "attention.dense": "attention_output",
        "ffn": "ffn_in",
        "ffn_output": "ffn_out",
    },
)
