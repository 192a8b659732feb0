"""The tables of all families together: which model types they know, and the role of a layer."""

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from nxm_hf.families import BY_MODEL_TYPE, FAMILIES, GENERIC, role_of
from tests.support.families import CASES


def test_the_tables_cover_many_kinds_of_model():
    present = {case.model_type for case in CASES} & set(CONFIG_MAPPING)
    assert len(present) >= 100, len(present)
    assert len(CASES) >= 110, len(CASES)


def test_every_model_type_of_the_catalogue_has_a_case():
    untested = {"siglip_text_model"}  # one of the towers of siglip, and no AutoModel
    assert set(BY_MODEL_TYPE) - {case.model_type for case in CASES} == untested


def test_no_model_type_has_two_families():
    assert len(BY_MODEL_TYPE) == sum(len(family.model_types) for family in FAMILIES)


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
