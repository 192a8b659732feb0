"""DistilBERT, and XLM and FlauBERT, whose names it took."""

from nxm_hf.families.base import Family

DISTILBERT = Family(
    name="distilbert",
    model_types=("distilbert", "flaubert", "xlm"),
    roles={
        "q_lin": "query",
        "k_lin": "key",
        "v_lin": "value",
        "out_lin": "attention_output",
        "lin1": "ffn_in",
        "lin2": "ffn_out",
    },
)
