"""Families: which layers are found in each kind of model, and with which roles, against tables typed in by hand."""

from collections import Counter
from dataclasses import dataclass

import pytest
import torch
import transformers
from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from nxm_hf.families import BY_MODEL_TYPE, FAMILIES, GENERIC, GROUPS, ROLES, Family, role_of
from nxm_hf.layers.find import find_layers

# One block of each kind: the layer's name in the block, its role, and how many when `#` stands for several.
BERT_ATTENTION = """
    attention.self.query                query
    attention.self.key                  key
    attention.self.value                value
    attention.output.dense              attention_output
"""
BERT_FFN = """
    intermediate.dense                  ffn_in
    output.dense                        ffn_out
"""
BERT = BERT_ATTENTION + BERT_FFN
BERT_CROSS = """
    crossattention.self.query           cross_query
    crossattention.self.key             cross_key
    crossattention.self.value           cross_value
    crossattention.output.dense         cross_output
"""
LILT = """
    attention.self.layout_query         query
    attention.self.layout_key           key
    attention.self.layout_value         value
    attention.layout_output.dense       attention_output
    layout_intermediate.dense           ffn_in
    layout_output.dense                 ffn_out
"""
CONVBERT = """
    attention.self.key_conv_attn_layer.pointwise  other
    attention.self.conv_kernel_layer    other
    attention.self.conv_out_layer       other
"""
XMOD = """
    output.adapter_modules.en_XX.dense1 other
    output.adapter_modules.en_XX.dense2 other
"""
LONGFORMER = """
    attention.self.query_global         query
    attention.self.key_global           key
    attention.self.value_global         value
"""
LUKE = """
    attention.self.w2e_query            query
    attention.self.e2w_query            query
    attention.self.e2e_query            query
"""
MOBILEBERT = """
    bottleneck.input.dense              other
    bottleneck.attention.dense          other
    ffn.#.intermediate.dense            ffn_in    3
    ffn.#.output.dense                  ffn_out   3
    output.bottleneck.dense             other
"""
MPNET = """
    attention.attn.q                    query
    attention.attn.k                    key
    attention.attn.v                    value
    attention.attn.o                    attention_output
"""
DISTILBERT = """
    attention.q_lin                     query
    attention.k_lin                     key
    attention.v_lin                     value
    attention.out_lin                   attention_output
    ffn.lin1                            ffn_in
    ffn.lin2                            ffn_out
"""
XLM_ATTENTION = """
    q_lin                               query
    k_lin                               key
    v_lin                               value
    out_lin                             attention_output
"""
XLM_FFN = """
    lin1                                ffn_in
    lin2                                ffn_out
"""
ALBERT = """
    attention.query                     query
    attention.key                       key
    attention.value                     value
    attention.dense                     attention_output
    ffn                                 ffn_in
    ffn_output                          ffn_out
"""
DEBERTA = """
    attention.self.in_proj              qkv
    attention.output.dense              attention_output
"""
DEBERTA_RELATIVE = """
    attention.self.pos_proj             other
    attention.self.pos_q_proj           other
"""
DEBERTA_V2 = """
    attention.self.query_proj           query
    attention.self.key_proj             key
    attention.self.value_proj           value
    attention.output.dense              attention_output
"""
DEBERTA_V2_RELATIVE = """
    attention.self.pos_key_proj         other
    attention.self.pos_query_proj       other
"""
MODERNBERT = """
    attn.Wqkv                           qkv
    attn.Wo                             attention_output
    mlp.Wi                              ffn_in
    mlp.Wo                              ffn_out
"""
MODERNBERT_DECODER = """
    attn.q_proj                         query
    attn.k_proj                         key
    attn.v_proj                         value
    attn.Wo                             attention_output
    mlp.Wi                              ffn_in
    mlp.Wo                              ffn_out
"""
FUNNEL = """
    attention.q_head                    query
    attention.k_head                    key
    attention.v_head                    value
    attention.post_proj                 attention_output
    ffn.linear_1                        ffn_in
    ffn.linear_2                        ffn_out
"""
SQUEEZEBERT = """
    attention.query                     query
    attention.key                       key
    attention.value                     value
    post_attention.conv1d               attention_output
    intermediate.conv1d                 ffn_in
    output.conv1d                       ffn_out
"""
XLNET = """
    ff.layer_1                          ffn_in
    ff.layer_2                          ffn_out
"""
LLAMA_ATTENTION = """
    self_attn.q_proj                    query
    self_attn.k_proj                    key
    self_attn.v_proj                    value
    self_attn.o_proj                    attention_output
"""
LLAMA_FFN = """
    mlp.gate_proj                       ffn_in
    mlp.up_proj                         ffn_in
    mlp.down_proj                       ffn_out
"""
LLAMA = LLAMA_ATTENTION + LLAMA_FFN
MLLAMA_CROSS = """
    cross_attn.q_proj                   cross_query
    cross_attn.k_proj                   cross_key
    cross_attn.v_proj                   cross_value
    cross_attn.o_proj                   cross_output
"""
MAMBA = """
    mamba.in_proj                       other
    mamba.x_proj                        other
    mamba.dt_proj                       other
    mamba.out_proj                      attention_output
"""
FEED_FORWARD = """
    feed_forward.gate_proj              ffn_in
    feed_forward.up_proj                ffn_in
    feed_forward.down_proj              ffn_out
"""
SHARED_EXPERT = """
    mlp.shared_expert.gate_proj         ffn_in
    mlp.shared_expert.up_proj           ffn_in
    mlp.shared_expert.down_proj         ffn_out
"""
GLM = """
    mlp.gate_up_proj                    ffn_in
    mlp.down_proj                       ffn_out
"""
PHI3 = """
    self_attn.qkv_proj                  qkv
    self_attn.o_proj                    attention_output
    mlp.gate_up_proj                    ffn_in
    mlp.down_proj                       ffn_out
"""
NO_GATE = """
    mlp.up_proj                         ffn_in
    mlp.down_proj                       ffn_out
"""
OPT_ATTENTION = """
    self_attn.q_proj                    query
    self_attn.k_proj                    key
    self_attn.v_proj                    value
    self_attn.out_proj                  attention_output
"""
OPT_FFN = """
    fc1                                 ffn_in
    fc2                                 ffn_out
"""
OPT = OPT_ATTENTION + OPT_FFN
PHI = """
    self_attn.q_proj                    query
    self_attn.k_proj                    key
    self_attn.v_proj                    value
    self_attn.dense                     attention_output
    mlp.fc1                             ffn_in
    mlp.fc2                             ffn_out
"""
MLP_FC = """
    mlp.fc1                             ffn_in
    mlp.fc2                             ffn_out
"""
STARCODER2 = """
    mlp.c_fc                            ffn_in
    mlp.c_proj                          ffn_out
"""
GPT2 = """
    attn.c_attn                         qkv
    attn.c_proj                         attention_output
    mlp.c_fc                            ffn_in
    mlp.c_proj                          ffn_out
"""
GPT2_CROSS = """
    crossattention.q_attn               cross_query
    crossattention.c_attn               qkv
    crossattention.c_proj               cross_output
"""
GPT_NEO = """
    attn.attention.q_proj               query
    attn.attention.k_proj               key
    attn.attention.v_proj               value
    attn.attention.out_proj             attention_output
    mlp.c_fc                            ffn_in
    mlp.c_proj                          ffn_out
"""
NEOX_FFN = """
    mlp.dense_h_to_4h                   ffn_in
    mlp.dense_4h_to_h                   ffn_out
"""
NEOX = """
    attention.query_key_value           qkv
    attention.dense                     attention_output
"""
BLOOM = """
    self_attention.query_key_value      qkv
    self_attention.dense                attention_output
"""
PERSIMMON = """
    self_attn.query_key_value           qkv
    self_attn.dense                     attention_output
"""
GPTJ = """
    attn.q_proj                         query
    attn.k_proj                         key
    attn.v_proj                         value
    attn.out_proj                       attention_output
    mlp.fc_in                           ffn_in
    mlp.fc_out                          ffn_out
"""
CODEGEN = """
    attn.qkv_proj                       qkv
    attn.out_proj                       attention_output
    mlp.fc_in                           ffn_in
    mlp.fc_out                          ffn_out
"""
MPT = """
    attn.Wqkv                           qkv
    attn.out_proj                       attention_output
    ffn.up_proj                         ffn_in
    ffn.down_proj                       ffn_out
"""
T5_SELF = """
    layer.#.SelfAttention.q             query
    layer.#.SelfAttention.k             key
    layer.#.SelfAttention.v             value
    layer.#.SelfAttention.o             attention_output
"""
T5_LOCAL = """
    layer.#.LocalSelfAttention.q        query
    layer.#.LocalSelfAttention.k        key
    layer.#.LocalSelfAttention.v        value
    layer.#.LocalSelfAttention.o        attention_output
"""
T5_CROSS = """
    layer.#.EncDecAttention.q           cross_query
    layer.#.EncDecAttention.k           cross_key
    layer.#.EncDecAttention.v           cross_value
    layer.#.EncDecAttention.o           cross_output
"""
T5_PLAIN = """
    layer.#.DenseReluDense.wi           ffn_in
    layer.#.DenseReluDense.wo           ffn_out
"""
T5_GATED = """
    layer.#.DenseReluDense.wi_0         ffn_in
    layer.#.DenseReluDense.wi_1         ffn_in
    layer.#.DenseReluDense.wo           ffn_out
"""
SWITCH = """
    wi                                  ffn_in
    wo                                  ffn_out
"""
BART_CROSS = """
    encoder_attn.q_proj                 cross_query
    encoder_attn.k_proj                 cross_key
    encoder_attn.v_proj                 cross_value
    encoder_attn.out_proj               cross_output
"""
VIT_ATTENTION = """
    attention.q_proj                    query
    attention.k_proj                    key
    attention.v_proj                    value
    attention.o_proj                    attention_output
"""
VIT = VIT_ATTENTION + MLP_FC
OLD_VIT = """
    attention.attention.query           query
    attention.attention.key             key
    attention.attention.value           value
    attention.output.dense              attention_output
    intermediate.dense                  ffn_in
    output.dense                        ffn_out
"""
WAV2VEC2 = """
    attention.q_proj                    query
    attention.k_proj                    key
    attention.v_proj                    value
    attention.out_proj                  attention_output
    feed_forward.intermediate_dense     ffn_in
    feed_forward.output_dense           ffn_out
"""

# The smallest configs, in the words of each kind of model.
WIDTH = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
TEXT = {**WIDTH, "num_hidden_layers": 2, "vocab_size": 99, "max_position_embeddings": 64}
DECODER = {**TEXT, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
GPT = {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
T5_SIZE = {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
BART_SIZE = {
    **{"vocab_size": 99, "d_model": 32, "max_position_embeddings": 64, "pad_token_id": 1},
    **{f"{side}_layers": 2 for side in ("encoder", "decoder")},
    **{f"{side}_attention_heads": 4 for side in ("encoder", "decoder")},
    **{f"{side}_ffn_dim": 64 for side in ("encoder", "decoder")},
}
IMAGE = {**WIDTH, "num_hidden_layers": 2, "image_size": 32, "patch_size": 8}
SWIN_SIZE = {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2]}
XLM_SIZE = {"vocab_size": 99, "emb_dim": 32, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64}
SPEECH = {
    **{**WIDTH, "num_hidden_layers": 2, "vocab_size": 99},
    **{"num_conv_pos_embedding_groups": 4, "num_conv_pos_embeddings": 16},
}


@dataclass(frozen=True)
class Case:
    """A tiny model: its config, which head, its stacks (prefix, block, how many), and the Linear layers left out."""

    model_type: str
    head: str
    config: dict
    stacks: tuple[tuple[str, str, int], ...]
    left_out: str = ""
    label: str = ""

    def __str__(self) -> str:
        return self.label or self.model_type


def encoder(model_type: str, prefix: str, block: str = BERT, left_out: str = "", config: dict = TEXT, **more) -> Case:
    """A text classifier with one stack of two blocks."""
    return Case(model_type, "SequenceClassification", config, ((prefix, block, 2),), left_out, **more)


def decoder(
    model_type: str, prefix: str, block: str, left_out: str = "lm_head", config: dict = DECODER, **more
) -> Case:
    """A language model with one stack of two blocks."""
    return Case(model_type, "CausalLM", config, ((prefix, block, 2),), left_out, **more)


def seq2seq(model_type: str, stacks: tuple[tuple[str, str], ...], config: dict, **more) -> Case:
    """A translator with two blocks in each stack."""
    return Case(model_type, "Seq2SeqLM", config, tuple((*stack, 2) for stack in stacks), "lm_head", **more)


def image(model_type: str, prefix: str, block: str = VIT, left_out: str = "classifier", config: dict = IMAGE) -> Case:
    """An image classifier with one stack of two blocks."""
    return Case(model_type, "ImageClassification", config, ((prefix, block, 2),), left_out)


POOLED = "pooler.dense classifier"
HEAD = "classifier.dense classifier.out_proj"
BART_STACKS = (("model.encoder.layers.#", OPT), ("model.decoder.layers.#", OPT + BART_CROSS))
LLAMA_LIKE = """
    apertus:n arcee:n bitnet cohere ernie4_5 exaone4 gemma gemma2 gemma3_text glm:g granite helium hunyuan_v1_dense
    llama ministral mistral mixtral:e nemotron:n olmo olmo2 olmo3 olmoe:e phi3:p qwen2 qwen3 qwen3_moe:e seed_oss
    smollm3 stablelm
"""
LLAMA_BLOCKS = {
    "": LLAMA,
    "n": LLAMA_ATTENTION + NO_GATE,
    "g": LLAMA_ATTENTION + GLM,
    "e": LLAMA_ATTENTION,  # experts are three-dimensional parameters
    "p": PHI3,
}

CASES = [
    # BERT and its names
    encoder("bert", "bert.encoder.layer.#", left_out="bert.pooler.dense classifier"),
    encoder("roberta", "roberta.encoder.layer.#", left_out=HEAD),
    encoder("xlm-roberta", "roberta.encoder.layer.#", left_out=HEAD),
    encoder("xlm-roberta-xl", "roberta.encoder.layer.#", left_out=HEAD),
    encoder("camembert", "roberta.encoder.layer.#", left_out=HEAD),
    encoder("electra", "electra.encoder.layer.#", left_out=f"electra.embeddings_project {HEAD}"),
    encoder("nystromformer", "nystromformer.encoder.layer.#", left_out=HEAD),
    encoder("layoutlm", "layoutlm.encoder.layer.#", left_out="layoutlm.pooler.dense classifier"),
    encoder(
        "layoutlmv3",
        "layoutlmv3.encoder.layer.#",
        left_out=f"layoutlmv3.encoder.rel_pos_bias layoutlmv3.encoder.rel_pos_x_bias "
        f"layoutlmv3.encoder.rel_pos_y_bias {HEAD}",
        config={**TEXT, "coordinate_size": 8, "shape_size": 4, "visual_embed": False, "max_2d_position_embeddings": 64},
    ),
    encoder("ernie", "ernie.encoder.layer.#", left_out="ernie.pooler.dense classifier"),
    encoder("megatron-bert", "bert.encoder.layer.#", left_out="bert.pooler.dense classifier"),
    encoder("data2vec-text", "data2vec_text.encoder.layer.#", left_out=HEAD),
    encoder(
        "rembert",
        "rembert.encoder.layer.#",
        left_out="rembert.encoder.embedding_hidden_mapping_in rembert.pooler.dense classifier",
    ),
    encoder("big_bird", "bert.encoder.layer.#", left_out=f"bert.pooler {HEAD}"),
    encoder("roberta-prelayernorm", "roberta_prelayernorm.encoder.layer.#", left_out=HEAD),
    encoder("roformer", "roformer.encoder.layer.#", left_out=HEAD),
    encoder("yoso", "yoso.encoder.layer.#", left_out=HEAD),
    encoder("mra", "mra.encoder.layer.#", left_out=HEAD),
    encoder(
        "roc_bert",
        "roc_bert.encoder.layer.#",
        left_out="roc_bert.embeddings.map_inputs_layer roc_bert.pooler.dense classifier",
    ),
    encoder("tapas", "tapas.encoder.layer.#", left_out="tapas.pooler.dense classifier"),
    encoder("esm", "esm.encoder.layer.#", left_out=f"esm.contact_head.regression {HEAD}"),
    encoder(
        "markuplm",
        "markuplm.encoder.layer.#",
        left_out="markuplm.embeddings.xpath_embeddings.xpath_unitseq2_embeddings "
        "markuplm.embeddings.xpath_embeddings.xpath_unitseq2_inner markuplm.embeddings.xpath_embeddings.inner2emb "
        "markuplm.pooler.dense classifier",
    ),
    encoder("fnet", "fnet.encoder.layer.#", BERT_FFN, "fnet.embeddings.projection fnet.pooler.dense classifier"),
    encoder("xmod", "roberta.encoder.layer.#", BERT + XMOD, HEAD),
    encoder("convbert", "convbert.encoder.layer.#", BERT + CONVBERT, f"convbert.embeddings_project {HEAD}"),
    Case("splinter", "", TEXT, (("encoder.layer.#", BERT, 2),)),
    Case("visual_bert", "", TEXT, (("encoder.layer.#", BERT, 2),), "embeddings.visual_projection pooler.dense"),
    Case("bros", "", TEXT, (("encoder.layer.#", BERT, 2),), "bbox_embeddings.bbox_projection pooler.dense"),
    Case("bert-generation", "", TEXT, (("encoder.layer.#", BERT, 2),)),
    Case(
        "canine",
        "SequenceClassification",
        TEXT,
        (
            ("canine.initial_char_encoder.layer.#", BERT, 1),
            ("canine.encoder.layer.#", BERT, 2),
            ("canine.final_char_encoder.layer.#", BERT, 1),
        ),
        "canine.pooler.dense classifier",
    ),
    decoder(
        "bert",
        "bert.encoder.layer.#",
        BERT + BERT_CROSS,
        "cls.predictions.transform.dense cls.predictions.decoder",
        config={**TEXT, "is_decoder": True, "add_cross_attention": True},
        label="bert that attends to an encoder",
    ),
    encoder("longformer", "longformer.encoder.layer.#", BERT + LONGFORMER, HEAD, {**TEXT, "attention_window": 4}),
    encoder(
        "luke",
        "luke.encoder.layer.#",
        BERT + LUKE,
        "luke.entity_embeddings.entity_embedding_dense luke.pooler.dense classifier",
        {**TEXT, "entity_vocab_size": 20, "entity_emb_size": 16},
    ),
    encoder("lilt", "lilt.encoder.layer.#", BERT + LILT, f"lilt.layout_embeddings.box_linear_embeddings {HEAD}"),
    encoder(
        "mobilebert",
        "mobilebert.encoder.layer.#",
        BERT + MOBILEBERT,
        "mobilebert.embeddings.embedding_transformation mobilebert.pooler.dense classifier",
        {**TEXT, "embedding_size": 16, "true_hidden_size": 16, "intra_bottleneck_size": 16},
    ),
    # Encoders with names of their own
    encoder("mpnet", "mpnet.encoder.layer.#", MPNET + BERT_FFN, HEAD),
    encoder(
        "distilbert",
        "distilbert.transformer.layer.#",
        DISTILBERT,
        "pre_classifier classifier",
        {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "vocab_size": 99, "max_position_embeddings": 64},
    ),
    *(
        Case(
            model_type,
            "SequenceClassification",
            XLM_SIZE,
            (("transformer.attentions.#", XLM_ATTENTION, 2), ("transformer.ffns.#", XLM_FFN, 2)),
            "sequence_summary.summary",
        )
        for model_type in ("xlm", "flaubert")
    ),
    *(
        Case(
            "albert",
            "SequenceClassification",
            {**TEXT, "embedding_size": 16, "num_hidden_groups": groups},
            (("albert.encoder.albert_layer_groups.#.albert_layers.#", ALBERT, groups),),
            "albert.encoder.embedding_hidden_mapping_in albert.pooler classifier",
            label=f"albert with {groups} group(s)",
        )
        for groups in (1, 2)
    ),
    encoder("deberta", "deberta.encoder.layer.#", DEBERTA + BERT_FFN, POOLED),
    encoder(
        "deberta",
        "deberta.encoder.layer.#",
        DEBERTA + DEBERTA_RELATIVE + BERT_FFN,
        POOLED,
        {**TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
        label="deberta with relative positions",
    ),
    encoder("deberta-v2", "deberta.encoder.layer.#", DEBERTA_V2 + BERT_FFN, POOLED),
    encoder(
        "deberta-v2",
        "deberta.encoder.layer.#",
        DEBERTA_V2 + DEBERTA_V2_RELATIVE + BERT_FFN,
        POOLED,
        {**TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "share_att_key": False},
        label="deberta-v2 with relative positions",
    ),
    encoder("modernbert", "model.layers.#", MODERNBERT, "head.dense classifier", {**TEXT, "pad_token_id": 0}),
    decoder(
        "modernbert-decoder",
        "model.layers.#",
        MODERNBERT_DECODER,
        "lm_head.dense decoder",
        {**TEXT, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
    ),
    encoder("eurobert", "model.layers.#", LLAMA, "dense classifier", {**TEXT, "pad_token_id": 0, "head_dim": 8}),
    encoder("nomic_bert", "nomic_bert.layers.#", LLAMA, "nomic_bert.pooler.dense classifier"),
    encoder("gte", "gte.layers.#", LLAMA, "gte.pooler.dense classifier"),
    encoder(
        "funnel",
        "funnel.encoder.blocks.#.#",
        FUNNEL,
        "classifier.linear_hidden classifier.linear_out",
        {"vocab_size": 99, "block_sizes": [1, 1], "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 64},
    ),
    encoder(
        "squeezebert",
        "transformer.encoder.layers.#",
        SQUEEZEBERT,
        "transformer.pooler.dense classifier",
        {**TEXT, "embedding_size": 32},
    ),
    encoder(
        "xlnet",
        "transformer.layer.#",
        XLNET,
        "sequence_summary.summary logits_proj",
        {"vocab_size": 99, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64},
    ),
    # Decoders
    *(
        decoder(model_type, "model.layers.#", LLAMA_BLOCKS[kind])
        for model_type, _, kind in (word.partition(":") for word in LLAMA_LIKE.split())
    ),
    decoder(
        "qwen2_moe",
        "model.layers.#",
        LLAMA_ATTENTION + SHARED_EXPERT,
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
    # Encoder and decoder
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
    # Vision and speech
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


def template(name: str) -> str:
    """The name with `#` for every number that is a whole component."""
    return ".".join("#" if part.isdigit() else part for part in name.split("."))


def expected(case: Case) -> Counter:
    """(template, role) -> how many, from the typed tables."""
    rows = Counter()
    for prefix, block, count in case.stacks:
        for line in filter(str.strip, block.splitlines()):
            end, role, *times = line.split()
            rows[f"{prefix}.{end}", role] += count * int(times[0] if times else 1)
    return rows


def build(case: Case) -> torch.nn.Module:
    """The model on the meta device: names and shapes, no numbers."""
    if case.model_type not in CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {case.model_type}")
    config = AutoConfig.for_model(case.model_type, **case.config)
    with torch.device("meta"):
        return getattr(transformers, f"AutoModel{'For' if case.head else ''}{case.head}").from_config(config)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_layer_of_the_table_is_found_with_its_role_and_no_other(case):
    model = build(case)
    layers = find_layers(model)
    assert Counter((template(layer.name), layer.role) for layer in layers) == expected(case)

    matrices = (torch.nn.Linear, transformers.pytorch_utils.Conv1D)
    found = {layer.name for layer in layers}
    left_out = {name for name, module in model.named_modules() if isinstance(module, matrices)} - found
    assert {template(name) for name in left_out} == set(case.left_out.split())


def test_the_tables_cover_many_kinds_of_model():
    present = {case.model_type for case in CASES} & set(CONFIG_MAPPING)
    assert len(present) >= 100, len(present)
    assert len(CASES) >= 110, len(CASES)


def test_every_model_type_of_the_catalogue_has_a_case():
    untested = {"siglip_text_model"}  # one of the towers of siglip, and no AutoModel
    assert set(BY_MODEL_TYPE) - {case.model_type for case in CASES} == untested


def test_no_model_type_has_two_families():
    assert len(BY_MODEL_TYPE) == sum(len(family.model_types) for family in FAMILIES)


def test_the_roles_and_groups_are_those_of_the_contract():
    assert ROLES == (
        *("query", "key", "value", "qkv", "attention_output", "ffn_in", "ffn_out"),
        *("cross_query", "cross_key", "cross_value", "cross_output", "other"),
    )
    assert GROUPS["ffn"] == ("ffn_in", "ffn_out")
    assert set(GROUPS["attention"]) == set(ROLES) - {"ffn_in", "ffn_out", "other"}


def test_the_longest_end_of_whole_components_gives_the_role():
    family = Family("toy", ("toy",), {"dense": "other", "output.dense": "ffn_out", "a.output.dense": "key"})
    assert family.role("layer.0.dense") == "other"
    assert family.role("layer.0.output.dense") == "ffn_out"
    assert family.role("layer.0.a.output.dense") == "key"
    assert family.role("layer.0.ba.output.dense") == "ffn_out"
    assert family.role("layer.0.layout_output.dense") == "other"
    assert family.role("layer.0.denser") is None


def test_a_family_with_an_unknown_role_is_refused():
    with pytest.raises(ValueError, match="Family toy gives 'q' the role 'querry'; the roles are query, key"):
        Family("toy", ("toy",), {"q": "querry"})


@pytest.mark.parametrize(
    ("model_type", "name", "role"),
    [
        (None, "layers.0.self_attn.q_proj", "query"),
        (None, "layers.0.cross_attn.q_proj", "cross_query"),
        (None, "layers.0.multihead_attn.out_proj", "cross_output"),
        (None, "h.0.attn.c_proj", "attention_output"),
        (None, "h.0.mlp.c_proj", "ffn_out"),
        (None, "h.0.c_proj", "other"),
        ("not-a-model-type", "layers.0.crossattention.output.dense", "cross_output"),
        ("bert", "bert.encoder.layer.0.attention.self.query.base_layer", "query"),
        ("bert", "bert.encoder.layer.0.linear2", "ffn_out"),  # no name of the family: the usual names decide
        ("bert", "bert.encoder.layer.0.adapter.down", "other"),
        ("mobilebert", "layer.0.bottleneck.attention.dense", "other"),  # usually attention_output: the family decides
    ],
)
def test_the_family_decides_then_the_usual_names_then_other(model_type, name, role):
    assert role_of(model_type, name) == role


def test_the_generic_family_stands_for_no_model_type():
    assert GENERIC.model_types == () and GENERIC not in FAMILIES
