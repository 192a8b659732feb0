"""The fit by Adam depends on its seed alone."""

from nxm_hf.patterns import parse
from tests.support.one_shot import METHODS, layer, statistics, tokens
from tests.support.toy_training import same


def test_a_sample_in_another_order_is_the_same_layer_and_the_same_seed_the_same_result():
    (weight, bias), inputs = layer(), statistics(tokens())
    one, other = (METHODS["adaprune-adam"](weight, bias, inputs, parse("2:4")) for _ in range(2))
    assert same([one.weight, one.bias], [other.weight, other.bias])
