"""Models with an encoder and a decoder."""

from tests.support.families.blocks import BART_CROSS, OPT, SWITCH, T5_CROSS, T5_GATED, T5_LOCAL, T5_PLAIN, T5_SELF
from tests.support.families.case import BART_SIZE, T5_SIZE, Case, seq2seq

BART_STACKS = (("model.encoder.layers.#", OPT), ("model.decoder.layers.#", OPT + BART_CROSS))

ENCODER_DECODERS = [
    seq2seq(
        "t5", (("encoder.block.#", T5_SELF + T5_PLAIN), ("decoder.block.#", T5_SELF + T5_CROSS + T5_PLAIN)), T5_SIZE
    ),
    *(
        seq2seq(
            model_type,
            (("encoder.block.#", T5_SELF + T5_GATED), ("decoder.block.#", T5_SELF + T5_CROSS + T5_GATED)),
            {**T5_SIZE, "feed_forward_proj": "gated-gelu"},
            label=f"{model_type}, gated",
        )
        for model_type in ("t5", "mt5", "umt5")
    ),
    Case(
        "switch_transformers",
        "Seq2SeqLM",
        {**T5_SIZE, "num_decoder_layers": 2, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}
        | {"num_experts": 2},
        (
            ("encoder.block.#", T5_SELF, 2),
            ("decoder.block.#", T5_SELF + T5_CROSS, 2),
            *((f"{side}.block.#.layer.#.mlp", SWITCH, 1) for side in ("encoder", "decoder")),
            *(
                (f"{side}.block.#.layer.#.mlp.experts.expert_{expert}", SWITCH, 1)
                for side in ("encoder", "decoder")
                for expert in (0, 1)
            ),
        ),
        "encoder.block.#.layer.#.mlp.router.classifier decoder.block.#.layer.#.mlp.router.classifier lm_head",
    ),
    seq2seq(
        "longt5",
        (("encoder.block.#", T5_LOCAL + T5_PLAIN), ("decoder.block.#", T5_SELF + T5_CROSS + T5_PLAIN)),
        T5_SIZE,
    ),
    *(
        seq2seq(model_type, BART_STACKS, BART_SIZE)
        for model_type in (
            *("bart", "mbart", "pegasus", "pegasus_x", "marian", "m2m_100", "blenderbot", "blenderbot-small"),
            *("plbart", "mvp"),
        )
    ),
    Case(
        "bart",
        "SequenceClassification",
        BART_SIZE,
        (("model.encoder.layers.#", OPT, 2), ("model.decoder.layers.#", OPT + BART_CROSS, 2)),
        "classification_head.dense classification_head.out_proj",
        label="bart, classifier",
    ),
    *(
        Case(
            model_type,
            "",
            BART_SIZE,
            (("encoder.layers.#", OPT, 2), ("decoder.layers.#", OPT + BART_CROSS, 2)),
        )
        for model_type in ("whisper", "speech_to_text")
    ),
]
