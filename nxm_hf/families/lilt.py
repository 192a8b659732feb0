"""LiLT: BERT's names twice, once for the text and once for the layout."""

from nxm_hf.families.base import Family
from nxm_hf.families.bert import BERT

LILT = Family(
    name="lilt",
    model_types=("lilt",),
    roles={
        **BERT.roles,
        "attention.self.layout_query": "query",
        "attention.self.layout_key": "key",
        "attention.self.layout_value": "value",
        "attention.layout_output.dense": "attention_output",
        "layout_intermediate.dense": "ffn_in",
        "layout_output.dense": "ffn_out",
    },
)
