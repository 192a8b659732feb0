"""Small models whose channels can be permuted, and how far apart their answers are."""

import torch
import transformers
from torch import nn

SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=50)


TINY = dict(**SMALL, max_position_embeddings=32)


GPT = dict(vocab_size=50, n_embd=32, n_layer=2, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=2)


SEQ = dict(vocab_size=50, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, decoder_start_token_id=0)


MOST = dict(vocab_size=50, d_model=32, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=64, decoder_ffn_dim=64)


DISTIL = dict(vocab_size=50, dim=32, n_layers=2, n_heads=2, hidden_dim=64)


OPT = dict(
    vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, ffn_dim=64, word_embed_proj_dim=32
)


SHARED = dict(TINY, num_attention_heads=8, num_key_value_heads=2, head_dim=8)


FUNNEL = dict(vocab_size=50, d_model=32, n_head=2, d_head=16, d_inner=64, block_sizes=[1, 1])


# Name -> class, config, and the roles that are permuted; 2 layers each (T5 and BART: in encoder and decoder).
FREE = {
    "bert": ("BertForSequenceClassification", TINY),
    "roberta": ("RobertaForSequenceClassification", TINY),
    "distilbert": ("DistilBertForSequenceClassification", DISTIL),
    "gpt2": ("GPT2LMHeadModel", GPT),
    "llama": ("LlamaForCausalLM", TINY),
    "llama with shared values": ("LlamaForCausalLM", SHARED),
    "phi3, all of attention in one": (
        "Phi3ForCausalLM",
        dict(TINY, num_attention_heads=4, num_key_value_heads=2, head_dim=8, pad_token_id=0, eos_token_id=2),
    ),
    "modernbert": ("ModernBertForSequenceClassification", dict(TINY, pad_token_id=0, eos_token_id=2, bos_token_id=1)),
    "opt": ("OPTForCausalLM", OPT),
    "t5": ("T5ForConditionalGeneration", SEQ),
    "t5, gated": ("T5ForConditionalGeneration", dict(SEQ, feed_forward_proj="gated-gelu")),
    "bart": ("BartForConditionalGeneration", dict(MOST, encoder_attention_heads=2, decoder_attention_heads=2)),
    "vit": ("ViTForImageClassification", dict(SMALL, image_size=16, patch_size=4)),
    "albert": ("AlbertForSequenceClassification", dict(TINY, embedding_size=16)),
    "longformer": ("LongformerForSequenceClassification", dict(TINY, attention_window=4)),
}


def make(kind: str, kwargs: dict, seed: int = 0) -> transformers.PreTrainedModel:
    """A model with random weights, and random biases too, so that one that does not move along is seen."""
    torch.manual_seed(seed)
    model = getattr(transformers, kind)
    config = model.config_class(
        **{key: value for key, value in kwargs.items() if not (kind[:3] == "ViT" and key == "vocab_size")}
    )
    model = model(config).eval()
    for name, parameter in model.named_parameters():
        if "bias" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def batch(model: transformers.PreTrainedModel) -> dict[str, torch.Tensor]:
    """Another example than the library's own."""
    chance = torch.Generator().manual_seed(7)
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(2, 3, 16, 16, generator=chance)}
    ids = torch.randint(3, 50, (2, 11), generator=chance)
    return {"input_ids": ids, **({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})}


@torch.no_grad()
def answer(model: nn.Module) -> torch.Tensor:
    return model(**batch(model)).logits


@torch.no_grad()
def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())
