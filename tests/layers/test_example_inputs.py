"""Example inputs: what a model takes, as the config of the model says."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from nxm_hf.layers.example_inputs import example_inputs


def model_of(name="input_ids", device="cpu", **config):
    """Return a module with a parameter, the name of its main input, and a config."""
    model = nn.Linear(1, 1, device=device)
    model.main_input_name, model.config = name, SimpleNamespace(**{"is_encoder_decoder": False, **config})
    return model


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({}, 6),
        *(({"max_position_embeddings": given}, found) for given, found in ((1, 1), (4, 4), (9, 6), (-1, 6), (0, 6))),
    ],
    ids=str,
)
@pytest.mark.parametrize("decoder", [False, True])
def test_text_is_as_long_as_asked_for_or_as_the_model_has_positions(decoder, config, length):
    """A number of positions that is not positive is none, as XLNet writes it."""
    model = model_of(is_encoder_decoder=decoder, **config)
    for rows, found in ((1, example_inputs(model, 6)), (3, example_inputs(model, 6, 3))):
        assert found.keys() == ({"input_ids", "decoder_input_ids"} if decoder else {"input_ids"})
        for ids in found.values():
            assert ids.shape == (rows, length) and ids.dtype == torch.long and not ids.any()


def test_images_have_the_channels_and_the_size_of_the_model():
    model = model_of("pixel_values", num_channels=2, image_size=5)
    for rows, found in ((1, example_inputs(model, 6)), (3, example_inputs(model, 6, 3))):
        assert found.keys() == {"pixel_values"} and torch.equal(found["pixel_values"], torch.zeros(rows, 2, 5, 5))


@pytest.mark.parametrize("name", ["input_ids", "pixel_values"])
def test_examples_are_where_the_model_is(name):
    found = example_inputs(model_of(name, "meta", num_channels=2, image_size=5), 6)
    assert {value.device.type for value in found.values()} == {"meta"}
