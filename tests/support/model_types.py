"""A tiny model of many types that can be trained: its class, its config, and rows with a loss."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from tests.support.families.case import BART_SIZE, DECODER, GPT, IMAGE, SPEECH, SWIN_SIZE, T5_SIZE, TEXT, XLM_SIZE

Row = dict[str, Tensor]
LENGTH = 8
ONE_LAYER = {"num_hidden_layers": 1}
ENCODER, CAUSAL, PIXELS = {**TEXT, **ONE_LAYER, "pad_token_id": 0}, {**DECODER, **ONE_LAYER}, {**IMAGE, **ONE_LAYER}
GPT_SIZE = {**GPT, "n_layer": 1, "rotary_dim": 4}
T5_TYPE = {**T5_SIZE, "num_layers": 1, "decoder_start_token_id": 0}
BART_TYPE = {**BART_SIZE, "encoder_layers": 1, "decoder_layers": 1, "decoder_start_token_id": 2}
EXPERTS = {**CAUSAL, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LOCAL_EXPERTS = {**CAUSAL, "num_local_experts": 4, "num_experts_per_tok": 2}
AUDIO = {
    **{**SPEECH, **ONE_LAYER, "num_feat_extract_layers": 2},
    **{"conv_dim": [16, 16], "conv_stride": [4, 4], "conv_kernel": [4, 4]},
}
PAIR = {"text_config": {**ENCODER, "pad_token_id": 0}, "vision_config": PIXELS}


def text(noise: torch.Generator) -> Row:
    """Return a row for a classifier of texts."""
    ids = torch.randint(3, 99, (LENGTH,), generator=noise)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[0] % 2}


def tokens(noise: torch.Generator) -> Row:
    """Return a row for a language model."""
    row = text(noise)
    return {**row, "labels": row["input_ids"]}


def image(noise: torch.Generator) -> Row:
    """Return a row for a classifier of images."""
    return {"pixel_values": torch.randn(3, 32, 32, generator=noise), "labels": torch.randint(2, (), generator=noise)}


def sound(noise: torch.Generator) -> Row:
    """Return a row for a classifier of sound waves."""
    return {"input_values": torch.randn(256, generator=noise), "labels": torch.randint(2, (), generator=noise)}


def spectrogram(noise: torch.Generator) -> Row:
    """Return a row for a classifier of spectrograms."""
    return {"input_values": torch.randn(24, 16, generator=noise), "labels": torch.randint(2, (), generator=noise)}


def speech(noise: torch.Generator) -> Row:
    """Return a row for a model that writes down speech."""
    return {"input_features": torch.randn(8, 32, generator=noise), "labels": tokens(noise)["labels"]}


def prompt(noise: torch.Generator) -> Row:
    """Return a text with an image in it, for a language model."""
    row = tokens(noise)
    row["input_ids"] = torch.cat([torch.full((16,), 98), row["input_ids"] % 98])
    return {
        "input_ids": row["input_ids"],
        "attention_mask": torch.ones_like(row["input_ids"]),
        "labels": row["input_ids"],
        "pixel_values": image(noise)["pixel_values"],
    }


@dataclass(frozen=True)
class ModelType:
    """A tiny model that can be trained.

    Args:
        name: Its `model_type`.
        cls: The name of its class in transformers.
        config: The arguments of its config.
        row: Makes one row of its training data.
        label: Its name in the tests, if the type is in the table twice.
    """

    name: str
    cls: str
    config: dict
    row: Callable[[torch.Generator], Row]
    label: str = ""

    def __str__(self) -> str:
        return self.label or self.name

    def model(self, seed: int) -> PreTrainedModel:
        """Return the model with random weights; the same for the same seed."""
        torch.manual_seed(seed)
        cls, config = getattr(transformers, self.cls), AutoConfig.for_model(self.name, **deepcopy(self.config))
        return cls.from_config(config) if self.cls.startswith("Auto") else cls(config)

    def rows(self, count: int) -> list[Row]:
        """Return rows of training data."""
        noise = torch.Generator().manual_seed(1)
        return [self.row(noise) for _ in range(count)]


def _types(names: str, cls: str, config: dict, row: Callable[[torch.Generator], Row]) -> list[ModelType]:
    return [ModelType(name, cls, config, row) for name in names.split()]


def _part(name: str, **sizes) -> dict:
    """Return the config of a part of a model of several."""
    return {"model_type": name, **sizes}


CLASSIFIER, LANGUAGE = "AutoModelForSequenceClassification", "AutoModelForCausalLM"
IMAGES, SOUNDS = "AutoModelForImageClassification", "AutoModelForAudioClassification"
TRANSLATOR = "AutoModelForSeq2SeqLM"

_NOTHING = "Nothing to prune in this .*: no Linear or Conv1D of its own stands in a stack of blocks"

TEXT_ENCODERS = [
    *_types("bert roberta electra deberta deberta-v2 mpnet", CLASSIFIER, ENCODER, text),
    *_types("modernbert nomic_bert gte", CLASSIFIER, ENCODER, text),
    ModelType("esm", CLASSIFIER, {**ENCODER, "mask_token_id": 1}, text),
    # With block_sparse attention its first forward pass makes new layers, which draws random numbers.
    ModelType("big_bird", CLASSIFIER, {**ENCODER, "attention_type": "original_full"}, text),
    ModelType("albert", CLASSIFIER, {**ENCODER, "embedding_size": 16}, text),
    ModelType(
        "distilbert", CLASSIFIER, {"vocab_size": 99, "dim": 32, "n_layers": 1, "n_heads": 4, "hidden_dim": 64}, text
    ),
    ModelType("xlm", CLASSIFIER, {**XLM_SIZE, "n_layers": 1}, text),
    ModelType(
        "funnel",
        CLASSIFIER,
        {"vocab_size": 99, "block_sizes": [1, 1], "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 64},
        text,
    ),
    ModelType("xlnet", CLASSIFIER, {"vocab_size": 99, "d_model": 32, "n_layer": 1, "n_head": 4, "d_inner": 64}, text),
]
DECODERS = [
    *_types("llama qwen2 qwen3 gemma2 phi3 olmo2 stablelm", LANGUAGE, CAUSAL, tokens),
    *_types("gpt2 gptj", LANGUAGE, GPT_SIZE, tokens),
    *_types("gpt_neox falcon", LANGUAGE, ENCODER, tokens),
    ModelType("opt", LANGUAGE, {**ENCODER, "ffn_dim": 64, "word_embed_proj_dim": 32}, tokens),
    ModelType("bloom", LANGUAGE, {"vocab_size": 99, "hidden_size": 32, "n_layer": 1, "n_head": 4}, tokens),
    ModelType("mamba", LANGUAGE, {"vocab_size": 99, "hidden_size": 64, "num_hidden_layers": 1}, tokens),
]
MIXTURES = [
    *_types("mixtral gpt_oss granitemoe minimax", LANGUAGE, LOCAL_EXPERTS, tokens),
    *_types("qwen2_moe qwen3_moe olmoe", LANGUAGE, EXPERTS, tokens),
    ModelType(
        "deepseek_v3",
        LANGUAGE,
        {
            **{**EXPERTS, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 0},
            **{"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8},
            "num_key_value_heads": 4,
        },
        tokens,
    ),
    ModelType(
        "llama4_text",
        "Llama4ForCausalLM",
        {
            **LOCAL_EXPERTS,
            "intermediate_size_mlp": 64,
            "interleave_moe_layer_step": 1,
            "attn_temperature_tuning": False,
        },
        tokens,
    ),
    ModelType(
        "jamba",
        LANGUAGE,
        {
            **{**CAUSAL, "num_hidden_layers": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 4},
            **{"expert_layer_period": 2, "expert_layer_offset": 1, "use_mamba_kernels": False, "mamba_dt_rank": 4},
        },
        tokens,
    ),
    ModelType(
        "switch_transformers",
        TRANSLATOR,
        {**T5_TYPE, "num_experts": 2, "num_decoder_layers": 1, "num_sparse_encoder_layers": 1}
        | {"num_sparse_decoder_layers": 1},
        tokens,
    ),
]
ENCODER_DECODERS = [
    *_types("t5 umt5", TRANSLATOR, T5_TYPE, tokens),
    *_types("bart pegasus m2m_100", TRANSLATOR, BART_TYPE, tokens),
]
VISION = [
    *_types("vit beit dinov2 ijepa vit_msn data2vec-vision dinov2_with_registers", IMAGES, PIXELS, image),
    ModelType("deit", "DeiTForImageClassification", PIXELS, image),
    *_types("swin swinv2", IMAGES, {**SWIN_SIZE, "window_size": 4}, image),
    ModelType("convnext", IMAGES, {"hidden_sizes": [16, 16, 16, 16], "depths": [1, 1, 1, 1], "patch_size": 2}, image),
    ModelType(
        "segformer",
        IMAGES,
        {"hidden_sizes": [16, 16, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 4]},
        image,
    ),
]
SOUND = [
    *_types("wav2vec2 wavlm data2vec-audio sew", SOUNDS, AUDIO, sound),
    ModelType(
        "audio-spectrogram-transformer",
        SOUNDS,
        {**PIXELS, "max_length": 24, "num_mel_bins": 16, "frequency_stride": 8, "time_stride": 8},
        spectrogram,
    ),
    ModelType(
        "whisper",
        "AutoModelForSpeechSeq2Seq",
        {
            **{**BART_TYPE, "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 16},
            **{"bos_token_id": 1, "eos_token_id": 2, "suppress_tokens": None, "begin_suppress_tokens": None},
        },
        speech,
    ),
]
SEVERAL_PARTS = [
    ModelType("clip", "CLIPForImageClassification", PAIR, image),
    ModelType("siglip", "SiglipForImageClassification", PAIR, image),
    ModelType(
        "llava",
        "AutoModelForImageTextToText",
        {
            **{"text_config": _part("llama", **CAUSAL), "vision_config": _part("clip_vision_model", **PIXELS)},
            **{"image_token_index": 98, "image_token_id": 98, "vision_feature_layer": -1},
        },
        prompt,
    ),
    ModelType(
        "encoder-decoder",
        "EncoderDecoderModel",
        {
            "encoder": _part("bert", **ENCODER),
            "decoder": _part("bert", **ENCODER, is_decoder=True, add_cross_attention=True),
            **{"decoder_start_token_id": 1, "pad_token_id": 0},
        },
        tokens,
    ),
]
MODEL_TYPES = [*TEXT_ENCODERS, *DECODERS, *MIXTURES, *ENCODER_DECODERS, *VISION, *SOUND, *SEVERAL_PARTS]
# Types without layers to prune, with what the library says of them.
REFUSED = {
    "resnet": (ModelType("resnet", IMAGES, {"embedding_size": 8, "hidden_sizes": [8], "depths": [1]}, image), _NOTHING),
    "poolformer": (
        ModelType("poolformer", IMAGES, {"hidden_sizes": [8] * 4, "depths": [1] * 4}, image),  # convolutions as FFN
        _NOTHING,
    ),
    "ibert": (ModelType("ibert", CLASSIFIER, ENCODER, text), _NOTHING),  # its layers quantize their weights
}
