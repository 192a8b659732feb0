"""MobileBERT: BERT's names with several feed-forward parts per block, and bottlenecks that are neither."""

from nxm_hf.families.base import Family
from nxm_hf.families.bert import BERT

MOBILEBERT = Family(
    name="mobilebert",
    model_types=("mobilebert",),
    roles={
        **BERT.roles,
        "bottleneck.input.dense": "other",
        "bottleneck.attention.dense": "other",
        "output.bottleneck.dense": "other",
    },
)
