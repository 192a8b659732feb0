"""MPNet: attention in one-letter names, the rest as BERT."""

from nxm_hf.families.base import Family

MPNET = Family(
    name="mpnet",
    model_types=("mpnet",),
    roles={
        "attention.attn.q": "query",
        "attention.attn.k": "key",
        "attention.attn.v": "value",
        "attention.attn.o": "attention_output",
        "intermediate.dense": "ffn_in",
        "output.dense": "ffn_out",
    },
)
