"""T5 and its kin, plain (`wi`) and gated (`wi_0`, `wi_1`)."""

from nxm_hf.families.base import Family

T5 = Family(
    name="t5",
    model_types=("longt5", "mt5", "switch_transformers", "t5", "umt5"),
    roles={
        "SelfAttention.q": "query",
        "SelfAttention.k": "key",
        "SelfAttention.v": "value",
        "SelfAttention.o": "attention_output",
        "LocalSelfAttention.q": "query",
        "LocalSelfAttention.k": "key",
        "LocalSelfAttention.v": "value",
        "LocalSelfAttention.o": "attention_output",
        "EncDecAttention.q": "cross_query",
        "EncDecAttention.k": "cross_key",
        "EncDecAttention.v": "cross_value",
        "EncDecAttention.o": "cross_output",
        "wi": "ffn_in",
        "wi_0": "ffn_in",
        "wi_1": "ffn_in",
        "wo": "ffn_out",
    },
)
