"""Decoders of text, and models with two kinds of blocks in one list."""

from tests.support.families.blocks import (
    BLOOM,
    CODEGEN,
    EXPERTS,
    FEED_FORWARD,
    GLM,
    GPT2,
    GPT2_CROSS,
    GPT_NEO,
    GPTJ,
    LLAMA,
    LLAMA_ATTENTION,
    LLAMA_FFN,
    MAMBA,
    MLLAMA_CROSS,
    MLP_FC,
    MPT,
    NEOX,
    NEOX_FFN,
    NO_GATE,
    OPT,
    PERSIMMON,
    PHI,
    PHI3,
    SHARED_EXPERT,
    STARCODER2,
)
from tests.support.families.case import DECODER, GPT, TEXT, Case, decoder

LLAMA_LIKE = """
    apertus:n arcee:n bitnet cohere ernie4_5 exaone4 gemma gemma2 gemma3_text glm:g granite helium hunyuan_v1_dense
    llama ministral mistral mixtral:e nemotron:n olmo olmo2 olmo3 olmoe:e phi3:p qwen2 qwen3 qwen3_moe:e seed_oss
    smollm3 stablelm
"""
LLAMA_BLOCKS = {
    "": LLAMA,
    "n": LLAMA_ATTENTION + NO_GATE,
    "g": LLAMA_ATTENTION + GLM,
    "e": LLAMA_ATTENTION + EXPERTS,
    "p": PHI3,
}

DECODERS = [
    *(
        decoder(model_type, "model.layers.#", LLAMA_BLOCKS[kind])
        for model_type, _, kind in (word.partition(":") for word in LLAMA_LIKE.split())
    ),
    decoder(
        "qwen2_moe",
        "model.layers.#",
        LLAMA_ATTENTION + EXPERTS + SHARED_EXPERT,
        "model.layers.#.mlp.shared_expert_gate lm_head",
        config={**DECODER, "num_experts": 4},
    ),
    # Of two kinds of blocks in one stack
    Case(
        "mllama",
        "",
        {
            "text_config": {**DECODER, "num_hidden_layers": 3, "cross_attention_layers": [1]},
            "vision_config": {
                **{"hidden_size": 32, "attention_heads": 4, "intermediate_size": 64, "image_size": 32, "patch_size": 8},
                **{"num_hidden_layers": 2, "num_global_layers": 2, "intermediate_layers_indices": [0, 1]},
            },
        },
        (
            ("vision_model.transformer.layers.#", LLAMA_ATTENTION + MLP_FC, 2),
            ("vision_model.global_transformer.layers.#", LLAMA_ATTENTION + MLP_FC, 2),
            ("language_model.layers.#", LLAMA, 2),
            ("language_model.layers.#", MLLAMA_CROSS + LLAMA_FFN, 1),
        ),
        "multi_modal_projector",
    ),
    Case(
        "jamba",
        "CausalLM",
        {**DECODER, "num_hidden_layers": 3, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 1},
        (("model.layers.#", MAMBA + FEED_FORWARD, 2), ("model.layers.#", LLAMA_ATTENTION + FEED_FORWARD, 1)),
        "lm_head",
    ),
    decoder("starcoder2", "model.layers.#", LLAMA_ATTENTION + STARCODER2),
    decoder("gpt2", "transformer.h.#", GPT2, config=GPT),
    decoder(
        "gpt2",
        "transformer.h.#",
        GPT2 + GPT2_CROSS,
        config={**GPT, "add_cross_attention": True},
        label="gpt2 that attends to an encoder",
    ),
    decoder("gpt_bigcode", "transformer.h.#", GPT2, config=GPT),
    decoder("openai-gpt", "transformer.h.#", GPT2, config=GPT),
    decoder(
        "gpt_neo",
        "transformer.h.#",
        GPT_NEO,
        config={
            **{"vocab_size": 99, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 64},
            "attention_types": [[["global", "local"], 1]],
        },
    ),
    decoder("gpt_neox", "gpt_neox.layers.#", NEOX + NEOX_FFN, config=TEXT),
    decoder(
        "bloom",
        "transformer.h.#",
        BLOOM + NEOX_FFN,
        config={"vocab_size": 99, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    ),
    decoder("falcon", "transformer.h.#", BLOOM + NEOX_FFN, config=TEXT),
    decoder("persimmon", "model.layers.#", PERSIMMON + NEOX_FFN),
    decoder("gptj", "transformer.h.#", GPTJ, config={**GPT, "rotary_dim": 4}),
    decoder("codegen", "transformer.h.#", CODEGEN, config={**GPT, "rotary_dim": 4}),
    decoder(
        "opt",
        "model.decoder.layers.#",
        OPT,
        "model.decoder.project_in model.decoder.project_out lm_head",
        {**TEXT, "ffn_dim": 64, "word_embed_proj_dim": 16},
    ),
    decoder("phi", "model.layers.#", PHI),
    decoder("biogpt", "biogpt.layers.#", OPT, "output_projection", TEXT),
    decoder(
        "xglm",
        "model.layers.#",
        OPT,
        config={"vocab_size": 99, "d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 64},
    ),
    decoder("mpt", "transformer.blocks.#", MPT, config={"vocab_size": 99, "d_model": 32, "n_heads": 4, "n_layers": 2}),
]
