"""Longformer: BERT's names, and a second set of projections for the tokens that attend globally."""

from nxm_hf.families.base import Family
from nxm_hf.families.bert import BERT

LONGFORMER = Family(
    name="longformer",
    model_types=("longformer",),
    roles={
        **BERT.roles,
        "attention.self.query_global": "query",
        "attention.self.key_global": "key",
        "attention.self.value_global": "value",
    },
)
