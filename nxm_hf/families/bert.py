"""BERT and the many encoders that kept its names."""

from nxm_hf.families.base import Family

BERT = Family(
    name="bert",
    model_types=(
        *("bert", "bert-generation", "big_bird", "bros", "camembert", "canine", "convbert", "data2vec-text"),
        *("electra", "ernie", "esm", "fnet", "layoutlm", "layoutlmv3", "markuplm", "megatron-bert", "mra"),
        *("nystromformer", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "splinter"),
        *("tapas", "visual_bert", "xlm-roberta", "xlm-roberta-xl", "xmod", "yoso"),
    ),
    roles={
        "attention.self.query": "query",
        "attention.self.key": "key",
        "attention.self.value": "value",
        "attention.output.dense": "attention_output",
        "crossattention.self.query": "cross_query",
        "crossattention.self.key": "cross_key",
        "crossattention.self.value": "cross_value",
        "crossattention.output.dense": "cross_output",
        "intermediate.dense": "ffn_in",
        "output.dense": "ffn_out",
    },
)
