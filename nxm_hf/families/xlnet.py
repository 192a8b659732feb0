"""XLNet: only the feed-forward part is made of Linear layers; its attention holds three-dimensional parameters."""

from nxm_hf.families.base import Family

XLNET = Family(
    name="xlnet",
    model_types=("xlnet",),
    roles={"ff.layer_1": "ffn_in", "ff.layer_2": "ffn_out"},
)
