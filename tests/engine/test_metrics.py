"""Metrics that are logged beside the loss."""

import math

import pytest

from nxm_hf import attach
from tests.support.grids import EACH_SPARSE_RECIPE, WINDOWS
from tests.support.toy_training import (
    TOTAL,
    Toy,
    adamw,
    short,
    train,
    trained,
)

LADDERS = ("structure-decay", "gradual", "acdc")  # whose masks keep now more and now less


@EACH_SPARSE_RECIPE
@WINDOWS
def test_metrics_say_where_the_run_is(recipe, window):
    model = Toy()
    optimizer = adamw(model)
    engine = attach(model, optimizer, short(recipe, **window), total_steps=TOTAL)
    for _ in train(model, optimizer, 0, TOTAL):
        metrics = engine.metrics()
        assert metrics["nxm/density"] == 0.5
        if recipe not in LADDERS:
            assert metrics["nxm/flip_rate"] == pytest.approx(2 * (1 - metrics["nxm/mask_similarity"]) * 0.5)
        assert 0 <= metrics["nxm/flip_rate"] <= 1 and 0 <= metrics["nxm/residual"] < 1
        assert metrics["nxm/phase"] == ("warmup", "recipe", "settle").index(engine.phase)
        if recipe not in (*LADDERS, "reset"):
            sparse = recipe in ("asp", "set", "rigl") and engine.phase == "recipe"
            assert (metrics["nxm/residual"] == 0) == (sparse or engine.phase == "settle")
        with engine.deployed():
            assert engine.metrics() == metrics


@EACH_SPARSE_RECIPE
def test_logging_a_nan_is_no_error(recipe):
    """It is the next mask that refuses it, and names the layer; a log would not."""
    _, engine = trained(short(recipe), steps=2, total=TOTAL)
    largest = engine.tensors()["blocks.0.up/weight"].abs().argmax()
    for slot in ("weight", "dense"):
        if (tensor := engine.tensors().get(f"blocks.0.up/{slot}")) is not None:
            tensor.view(-1)[largest] = math.nan
    assert math.isnan(engine.metrics()["nxm/residual"])
    with pytest.raises(ValueError, match=r"blocks\.0\.up"):
        engine.finish()
