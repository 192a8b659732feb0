"""ViT and the vision encoders with its names, before and after Transformers renamed them."""

from nxm_hf.families.base import Family

VIT = Family(
    name="vit",
    model_types=(
        "beit",
        "data2vec-vision",
        "deit",
        "dinov2",
        "dinov3_vit",
        "ijepa",
        "swin",
        "swinv2",
        "vit",
        "vit_mae",
        "vit_msn",
    ),
    roles={
        "attention.q_proj": "query",
        "attention.k_proj": "key",
        "attention.v_proj": "value",
        "attention.o_proj": "attention_output",
        "mlp.fc1": "ffn_in",
        "mlp.fc2": "ffn_out",
        # The larger DINOv2 and DINOv3 have a gated feed-forward part.
        "mlp.gate_proj": "ffn_in",
        "mlp.up_proj": "ffn_in",
        "mlp.down_proj": "ffn_out",
        # The names before the renaming, which Swin v2 and Data2Vec keep.
        "mlp.weights_in": "ffn_in",
        "mlp.weights_out": "ffn_out",
        "attention.attention.query": "query",
        "attention.attention.key": "key",
        "attention.attention.value": "value",
        "attention.self.query": "query",
        "attention.self.key": "key",
        "attention.self.value": "value",
        "attention.output.dense": "attention_output",
        "intermediate.dense": "ffn_in",
        "output.dense": "ffn_out",
    },
)
