"""LUKE: BERT's names, and three more queries between words (w) and entities (e)."""

from nxm_hf.families.base import Family
from nxm_hf.families.bert import BERT

LUKE = Family(
    name="luke",
    model_types=("luke",),
    roles={
        **BERT.roles,
        "attention.self.w2e_query": "query",
        "attention.self.e2w_query": "query",
        "attention.self.e2e_query": "query",
    },
)
