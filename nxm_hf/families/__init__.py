"""Families: what each layer of a known kind of model does. This list is the catalogue.

To add a family, write one file of data, import it and list it here.
"""

from nxm_hf.families.albert import ALBERT
from nxm_hf.families.bart import BART
from nxm_hf.families.base import GROUPS, HEAD_SIZE_ATTRIBUTES, PRODUCERS, ROLES, Family
from nxm_hf.families.bert import BERT
from nxm_hf.families.clip import CLIP
from nxm_hf.families.deberta import DEBERTA
from nxm_hf.families.distilbert import DISTILBERT
from nxm_hf.families.funnel import FUNNEL
from nxm_hf.families.generic import GENERIC
from nxm_hf.families.gpt2 import GPT2
from nxm_hf.families.gpt_neo import GPT_NEO
from nxm_hf.families.gpt_neox import GPT_NEOX
from nxm_hf.families.gptj import GPTJ
from nxm_hf.families.lilt import LILT
from nxm_hf.families.llama import LLAMA
from nxm_hf.families.longformer import LONGFORMER
from nxm_hf.families.luke import LUKE
from nxm_hf.families.mobilebert import MOBILEBERT
from nxm_hf.families.modernbert import MODERNBERT
from nxm_hf.families.mpnet import MPNET
from nxm_hf.families.opt import OPT
from nxm_hf.families.squeezebert import SQUEEZEBERT
from nxm_hf.families.t5 import T5
from nxm_hf.families.vit import VIT
from nxm_hf.families.wav2vec2 import WAV2VEC2
from nxm_hf.families.xlnet import XLNET

FAMILIES = (
    *(ALBERT, BART, BERT, CLIP, DEBERTA, DISTILBERT, FUNNEL, GPT2, GPTJ, GPT_NEO, GPT_NEOX, LILT, LLAMA),
    *(LONGFORMER, LUKE, MOBILEBERT, MODERNBERT, MPNET, OPT, SQUEEZEBERT, T5, VIT, WAV2VEC2, XLNET),
)
BY_MODEL_TYPE: dict[str, Family] = {model_type: family for family in FAMILIES for model_type in family.model_types}


def role_of(model_type: str | None, name: str) -> str:
    """The role of the layer called `name`: by its family, else by the usual names, else "other".

    >>> role_of("t5", "encoder.block.0.layer.0.SelfAttention.q")
    'query'
    >>> role_of(None, "layers.0.linear1")
    'ffn_in'
    """
    family, name = _family(model_type, name)
    return family.role(name) or "other"


def scope_of(model_type: str | None, name: str) -> str:
    """The part of the model that the layer called `name` has its role in: the name without the end that tells it.

    >>> scope_of("bert", "encoder.layer.0.attention.output.dense"), scope_of("bert", "encoder.layer.0.output.dense")
    ('encoder.layer.0', 'encoder.layer.0')
    """
    family, name = _family(model_type, name)
    end = family.suffix(name) or name.rpartition(".")[2]
    return name.removesuffix(end).rstrip(".")


def _family(model_type: str | None, name: str) -> tuple[Family, str]:
    """Whose table knows the name, and the name as it is there."""
    name = name.removesuffix(".base_layer")  # where PEFT keeps the layer that an adapter wraps
    family = BY_MODEL_TYPE.get(model_type, GENERIC)
    return (family if family.suffix(name) else GENERIC), name


__all__ = [
    "BY_MODEL_TYPE",
    "FAMILIES",
    "GENERIC",
    "GROUPS",
    "HEAD_SIZE_ATTRIBUTES",
    "PRODUCERS",
    "ROLES",
    "Family",
    "role_of",
    "scope_of",
]
