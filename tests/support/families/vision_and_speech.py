"""Encoders of images and of speech, and models of images and text."""

from tests.support.families.blocks import (
    BERT,
    LLAMA_FFN,
    MLP_FC,
    NO_GATE,
    OLD_VIT,
    OPT_ATTENTION,
    VIT,
    VIT_ATTENTION,
    WAV2VEC2,
)
from tests.support.families.case import IMAGE, SPEECH, SWIN_SIZE, TEXT, Case, image

VISION_AND_SPEECH = [
    image("vit", "vit.layers.#"),
    Case("deit", "", IMAGE, (("layers.#", VIT, 2),), "pooler.dense"),
    image("beit", "beit.layers.#"),
    image("dinov2", "dinov2.encoder.layer.#"),
    Case(
        "dinov2",
        "ImageClassification",
        {**IMAGE, "use_swiglu_ffn": True},
        (("dinov2.encoder.layer.#", VIT_ATTENTION + LLAMA_FFN, 2),),
        "classifier",
        label="dinov2, gated",
    ),
    Case("dinov3_vit", "", IMAGE, (("model.layer.#", VIT_ATTENTION + NO_GATE, 2),)),
    image("ijepa", "ijepa.layers.#"),
    image("vit_msn", "vit.layers.#"),
    Case("vit_mae", "", IMAGE, (("layers.#", VIT, 2),)),
    image("data2vec-vision", "data2vec_vision.encoder.layer.#", OLD_VIT),
    image(
        "swin",
        "swin.encoder.layers.#.blocks.#",
        left_out="swin.encoder.layers.#.downsample.reduction classifier",
        config={**SWIN_SIZE, "window_size": 4},
    ),
    image(
        "swinv2",
        "swinv2.encoder.layers.#.blocks.#",
        BERT,
        "swinv2.encoder.layers.#.blocks.#.attention.self.continuous_position_bias_mlp.# "
        "swinv2.encoder.layers.#.downsample.reduction classifier",
        {**SWIN_SIZE, "window_size": 4},
    ),
    Case("clip_vision_model", "", IMAGE, (("encoder.layers.#", OPT_ATTENTION + MLP_FC, 2),)),
    Case("clip_text_model", "", TEXT, (("encoder.layers.#", OPT_ATTENTION + MLP_FC, 2),)),
    *(
        Case(
            model_type,
            "",
            {"text_config": {**TEXT, "pad_token_id": 0}, "vision_config": IMAGE, "projection_dim": 16},
            (
                ("text_model.encoder.layers.#", OPT_ATTENTION + MLP_FC, 2),
                ("vision_model.encoder.layers.#", OPT_ATTENTION + MLP_FC, 2),
            ),
            left_out,
        )
        for model_type, left_out in (
            ("clip", "text_projection visual_projection"),
            (
                "siglip",
                "text_model.head vision_model.head.attention.out_proj vision_model.head.mlp.fc1 "
                "vision_model.head.mlp.fc2",
            ),
        )
    ),
    Case(
        "siglip_vision_model",
        "",
        IMAGE,
        (("encoder.layers.#", OPT_ATTENTION + MLP_FC, 2),),
        "head.attention.out_proj head.mlp.fc1 head.mlp.fc2",
    ),
    *(
        Case(model_type, "", SPEECH, (("encoder.layers.#", WAV2VEC2, 2),), "feature_projection.projection")
        for model_type in ("wav2vec2", "hubert")
    ),
    Case(
        "wavlm",
        "",
        SPEECH,
        (("encoder.layers.#", WAV2VEC2, 2),),
        "encoder.layers.#.attention.gru_rel_pos_linear feature_projection.projection",
    ),
]
