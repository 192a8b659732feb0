"""Blocks of each kind of model: the layers and their roles, typed in by hand.

A line has the name of a layer in its block, its role, and how many layers match if `#` stands for several numbers.
"""

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
EXPERTS = """
    mlp.experts.gate_up_proj            ffn_in
    mlp.experts.down_proj               ffn_out
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
