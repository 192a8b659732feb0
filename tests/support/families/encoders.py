"""Encoders of text: BERT and the models with its names, and those with names of their own."""

from tests.support.families.blocks import (
    ALBERT,
    BERT,
    BERT_CROSS,
    BERT_FFN,
    CONVBERT,
    DEBERTA,
    DEBERTA_RELATIVE,
    DEBERTA_V2,
    DEBERTA_V2_RELATIVE,
    DISTILBERT,
    FUNNEL,
    LILT,
    LLAMA,
    LONGFORMER,
    LUKE,
    MOBILEBERT,
    MODERNBERT,
    MODERNBERT_DECODER,
    MPNET,
    SQUEEZEBERT,
    XLM_ATTENTION,
    XLM_FFN,
    XLNET,
    XMOD,
)
from tests.support.families.case import TEXT, XLM_SIZE, Case, decoder, encoder

POOLED = "pooler.dense classifier"
HEAD = "classifier.dense classifier.out_proj"

ENCODERS = [
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
]
