"""Names of layers in files: those that transformers gives to them when it saves."""

import pytest

from nxm_hf.layers.find import find_layers
from nxm_hf.packing.file_names import names_in_files
from nxm_hf.storage.model_files import skeleton
from tests.support.models import make_model
from tests.support.packed_models import FAMILIES, tensors_of


@pytest.mark.parametrize("family", FAMILIES)
def test_the_names_are_those_of_the_saved_weights(family, tmp_path):
    model = make_model(family)
    model.save_pretrained(tmp_path)
    names = names_in_files(skeleton(tmp_path), [layer.name for layer in find_layers(model)])
    saved = tensors_of(tmp_path)
    for layer in find_layers(model):
        assert saved[f"{names[layer.name]}.weight"].equal(layer.weight)


def test_layers_that_are_saved_joined_with_others_have_no_name():
    model = make_model("bert")
    assert names_in_files(model, ["bert.pooler.dense"]) == {"bert.pooler.dense": "bert.pooler.dense"}
    model._weight_conversions = [object()]  # a conversion that fails
    assert names_in_files(model, ["bert.pooler.dense"]) == {}
