"""Families: the role of each layer in the models of a known kind, as tables.

To add a family, write one file of data, import it here and list it in `FAMILIES`.
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
    ALBERT,
    BART,
    BERT,
    CLIP,
    DEBERTA,
    DISTILBERT,
    FUNNEL,
    GPT2,
    GPTJ,
    GPT_NEO,
    GPT_NEOX,
    LILT,
    LLAMA,
    LONGFORMER,
    LUKE,
    MOBILEBERT,
    MODERNBERT,
    MPNET,
    OPT,
    SQUEEZEBERT,
    T5,
    VIT,
    WAV2VEC2,
    XLNET,
)
BY_MODEL_TYPE: dict[str, Family] = {model_type: family for family in FAMILIES for model_type in family.model_types}


def role_of(model_type: str | None, name: str) -> str:
    """Return the role of a layer: by the model's family, else by the names that most models use, else "other".

    Args:
        model_type: The `model_type` of the config of the model, or None if it has none.
        name: The name of the layer.

    Example:
        >>> role_of("t5", "encoder.block.0.layer.0.SelfAttention.q")
        'query'
        >>> role_of(None, "layers.0.linear1")
        'ffn_in'
    """
    family, name = _family_of(model_type, name)
    return family.role(name) or "other"


def scope_of(model_type: str | None, name: str) -> str:
    """Return the scope of a layer: its name without the suffix that determines its role.

    Layers of one scope work together, such as the query and the key of one attention module.

    Args:
        model_type: The `model_type` of the config of the model, or None if it has none.
        name: The name of the layer.

    Example:
        >>> scope_of("bert", "encoder.layer.0.attention.output.dense")
        'encoder.layer.0'
        >>> scope_of("bert", "encoder.layer.0.output.dense")
        'encoder.layer.0'
    """
    family, name = _family_of(model_type, name)
    suffix = family.suffix(name) or name.rpartition(".")[2]
    return name.removesuffix(suffix).rstrip(".")


def _family_of(model_type: str | None, name: str) -> tuple[Family, str]:
    """Return the family whose table has the layer, and the name of the layer in that table."""
    name = name.removesuffix(".base_layer")  # PEFT keeps the layer that an adapter wraps under this name
    family = BY_MODEL_TYPE.get(model_type or "", GENERIC)
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
