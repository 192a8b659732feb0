"""Tiny models of several families, rows, batches, a tokenizer and training arguments, all made by code."""

import gc
from collections.abc import Callable

import torch
import transformers as T
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

SHAPE = dict(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
TOKENS = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
STACKS = dict(encoder_layers=2, decoder_layers=2, encoder_ffn_dim=64, decoder_ffn_dim=64, d_model=32, vocab_size=50)
STACKS |= dict(encoder_attention_heads=2, decoder_attention_heads=2, decoder_start_token_id=1, **TOKENS)
IMAGE = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=16)


def make_bert(seed: int = 0, **changes) -> BertForSequenceClassification:
    """Return a BERT of two layers with random weights; the same for the same seed."""
    torch.manual_seed(seed)
    words = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=50)
    words.update(max_position_embeddings=32, problem_type="single_label_classification")
    return BertForSequenceClassification(BertConfig(**{**words, **changes}))


def _t5() -> T.PreTrainedModel:
    words = dict(vocab_size=50, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, decoder_start_token_id=0)
    return T.T5ForConditionalGeneration(T.T5Config(**words, pad_token_id=0, feed_forward_proj="gated-gelu"))


def _gpt2() -> T.PreTrainedModel:
    return T.GPT2LMHeadModel(T.GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=50, n_positions=16, **TOKENS))


def _opt() -> T.PreTrainedModel:
    words = dict(vocab_size=50, hidden_size=32, num_hidden_layers=2, ffn_dim=64, num_attention_heads=2)
    return T.OPTForCausalLM(T.OPTConfig(**words, word_embed_proj_dim=32, max_position_embeddings=16, **TOKENS))


def _funnel() -> T.PreTrainedModel:
    words = dict(vocab_size=50, block_sizes=[1, 1], num_decoder_layers=1, d_model=32, n_head=2, d_head=16, d_inner=64)
    return T.FunnelModel(T.FunnelConfig(**words))


def _squeezebert() -> T.PreTrainedModel:
    groups = dict.fromkeys(("k_groups", "v_groups", "post_attention_groups", "intermediate_groups", "output_groups"), 1)
    return T.SqueezeBertModel(T.SqueezeBertConfig(**SHAPE, embedding_size=32, q_groups=2, **groups))


def _swin() -> T.PreTrainedModel:
    words = dict(image_size=16, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 2], window_size=4)
    return T.SwinModel(T.SwinConfig(**words))


MODELS: dict[str, Callable[[], T.PreTrainedModel]] = {
    "bert": make_bert,
    "llama": lambda: T.LlamaForCausalLM(T.LlamaConfig(**SHAPE, **TOKENS)),
    "gpt2": _gpt2,
    "opt": _opt,
    "t5": _t5,
    "bart": lambda: T.BartForConditionalGeneration(T.BartConfig(**STACKS, max_position_embeddings=16)),
    "vit": lambda: T.ViTForImageClassification(T.ViTConfig(**IMAGE, patch_size=8)),
    "albert": lambda: T.AlbertModel(T.AlbertConfig(**SHAPE, embedding_size=16)),
    "deberta-v2": lambda: T.DebertaV2Model(
        T.DebertaV2Config(**SHAPE, relative_attention=True, pos_att_type=["p2c", "c2p"])
    ),
    "gemma2": lambda: T.Gemma2ForCausalLM(T.Gemma2Config(**SHAPE, head_dim=16, num_key_value_heads=2, **TOKENS)),
    "funnel": _funnel,
    "squeezebert": _squeezebert,
    "swin": _swin,
}
IMAGES = ("vit", "swin")
TWO_STACKS = ("t5", "bart")


def make_model(name: str, seed: int = 0) -> T.PreTrainedModel:
    """Return a model of a few blocks in evaluation mode; the same for the same seed."""
    torch.manual_seed(seed)
    return MODELS[name]().eval()


def make_batches(name: str, count: int = 3, rows: int = 2, padded: bool = True) -> list[dict[str, Tensor]]:
    """Return inputs of a model. Rows end in padding; encoder and decoder get rows of different lengths."""
    noise = torch.Generator().manual_seed(7)
    if name in IMAGES:
        return [{"pixel_values": torch.randn(rows, 3, 16, 16, generator=noise)} for _ in range(count)]
    batches = []
    for _ in range(count):
        batch = _text(rows, 8, padded, noise)
        if name in TWO_STACKS:
            batch |= {f"decoder_{key}": value for key, value in _text(rows, 6, padded, noise).items()}
        batches.append(batch)
    return batches


def _text(rows: int, length: int, padded: bool, noise: torch.Generator) -> dict[str, Tensor]:
    mask = torch.ones(rows, length, dtype=torch.long)
    if padded:
        mask[1, length - 3 :] = 0
    return {"input_ids": torch.randint(3, 50, (rows, length), generator=noise), "attention_mask": mask}


def make_tokenizer(special: bool = True) -> T.PreTrainedTokenizerFast:
    """Return a tokenizer of words w0 to w45 between [CLS] and [SEP]; with `special=False`, of words alone."""
    names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *(f"w{number}" for number in range(46))]
    tokenizer = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if not special:
        return T.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    words = dict(pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]")
    return T.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=32, **words)


def make_texts(count: int = 40, words: int = 12, seed: int = 3) -> list[str]:
    """Return texts of random words of the tokenizer, of several lengths."""
    noise = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, words + 1, (count,), generator=noise).tolist()
    return [" ".join(f"w{n}" for n in torch.randint(0, 46, (length,), generator=noise)) for length in lengths]


def make_rows(count: int = 64, length: int = 8) -> list[dict[str, torch.Tensor]]:
    """Return rows whose label is the parity of their first token."""
    ids = torch.randint(0, 50, (count, length), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row[0] % 2} for row in ids]


def make_arguments(output_dir, **changes) -> TrainingArguments:
    """Return the arguments of a training of 12 steps on the CPU."""
    words = dict(
        output_dir=str(output_dir),
        max_steps=12,
        per_device_train_batch_size=8,
        learning_rate=1e-3,
        weight_decay=0.01,
        save_steps=6,
        logging_steps=3,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        seed=0,
    )
    return TrainingArguments(**{**words, **changes})


def assert_equal_weights(one: torch.nn.Module, other: torch.nn.Module) -> None:
    """Raise unless two models hold the same weights, bit for bit."""
    different = [
        name
        for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True)
        if not torch.equal(a, b)
    ]
    assert not different, f"these weights differ: {different}"


def spare_imports() -> None:
    """Exclude what imports have made from garbage collection, which accelerate runs at every training."""
    gc.collect()
    gc.freeze()
