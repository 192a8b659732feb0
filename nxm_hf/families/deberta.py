"""DeBERTa v1 (query, key and value in one), v2 and v3, with projections of relative positions."""

from nxm_hf.families.base import Family

DEBERTA = Family(
    name="deberta",
    model_types=("deberta", "deberta-v2"),
    roles={
        "attention.self.in_proj": "qkv",
        "attention.self.query_proj": "query",
        "attention.self.key_proj": "key",
        "attention.self.value_proj": "value",
        "attention.self.pos_proj": "other",
        "attention.self.pos_q_proj": "other",
        "attention.self.pos_key_proj": "other",
        "attention.self.pos_query_proj": "other",
        "attention.output.dense": "attention_output",
        "intermediate.dense": "ffn_in",
        "output.dense": "ffn_out",
    },
)
