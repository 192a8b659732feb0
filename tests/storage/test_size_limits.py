"""A config may ask for a model only as large as the files beside it pay for."""

import json
import re
import threading

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import CONFIG_MAPPING

from nxm_hf.storage.model_files import skeleton
from nxm_hf.storage.size_limits import check_bytes, check_counts, limited_parameters

ALWAYS, WITHOUT_FILES = 8192, 1 << 15  # parameters
# Counts that multiply, or whose names do not say that they count.
CONFIGS = {
    "albert": ("AlbertForSequenceClassification", dict(num_hidden_layers=1, inner_group_num=10**7)),
    "bart": ("BartForConditionalGeneration", dict(encoder_layers=1000, decoder_layers=1000)),
    "funnel": ("FunnelForSequenceClassification", dict(block_sizes=[10**7])),
    "swin": ("SwinForImageClassification", dict(depths=[1000] * 50, num_heads=[1] * 50, embed_dim=1)),
}


def write_tensors(folder, count):
    """Write a file of so many tensors, and return the path of the config beside it."""
    save_file({f"tensor.{number}": torch.zeros(1) for number in range(count)}, folder / "model.safetensors")
    return folder / "config.json"


def build(parameters):
    """Make a module of so many parameters on the meta device."""
    with torch.device("meta"):
        return nn.ParameterList(nn.Parameter(torch.empty(())) for _ in range(parameters))


@pytest.mark.parametrize(("tensors", "limit"), [(1, ALWAYS), (4096, ALWAYS), (5000, 10_000), (None, WITHOUT_FILES)])
def test_two_parameters_for_each_tensor_are_allowed_and_no_more(tensors, limit, tmp_path):
    path = tmp_path / "config.json" if tensors is None else write_tensors(tmp_path, tensors)
    with limited_parameters(path):
        build(limit)
    beside = "no weights can be read" if tensors is None else f"the weights beside it are {tensors} tensors"
    with pytest.raises(ValueError, match=rf"config\.json asks for more than {limit:,} parameters, and {beside}"):
        with limited_parameters(path):
            build(limit + 1)
    build(limit + 1)  # nothing is counted after the block


@pytest.mark.parametrize(
    ("asked", "fits"),
    [
        ({"num_hidden_layers": 1000, "num_labels": 21_841}, True),
        ({"num_hidden_layers": 1001}, False),
        ({"text_config": {"num_experts": 1001}}, False),
        ({"num_qa_labels": 100_001}, False),
    ],
)
def test_one_tensor_can_hold_many_labels_but_no_layers(asked, fits, tmp_path):
    path = write_tensors(tmp_path, 1)
    path.write_text(json.dumps(asked))
    if fits:
        return check_counts(path)
    with pytest.raises(
        ValueError, match=r"config\.json asks for \w+=1e\+0[35], and the weights beside it are 1 tensors"
    ):
        check_counts(path)


@pytest.mark.parametrize(
    ("asked", "beyond"),
    [
        ({"num_experts": [1, 5000]}, "num_experts=5e+03"),
        ({"a": {"depths": [2000, 3]}, "n_layer": 1500}, "depths=2e+03, n_layer=1.5e+03"),
        ({"num_layers": 1e400, "num_hidden_layers": -(10**400)}, "num_layers=inf, num_hidden_layers=inf"),
        ({"vocab_size": 10**9, "layers_of": 10**6, "layer_types": ["a"] * 2000, "num_layers": "9999"}, ""),
    ],
    ids=str,
)
def test_numbers_that_count_parts_are_found_at_any_depth_of_a_config(asked, beyond, tmp_path):
    path = write_tensors(tmp_path, 1001)
    path.write_text(json.dumps(asked))
    if not beyond:
        return check_counts(path)
    with pytest.raises(ValueError, match=re.escape(f"asks for {beyond}, and the weights beside it are 1001")):
        check_counts(path)


def test_a_config_without_weights_has_none_that_pay_for_its_layers(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"num_layers": 1001}))
    with pytest.raises(ValueError, match=r"num_layers=1e\+03, and the weights beside it are 0 tensors\. Save it again"):
        check_counts(tmp_path / "config.json")


def test_as_many_layers_as_there_are_tensors_are_allowed(tmp_path):
    path = write_tensors(tmp_path, 1005)
    for asked, fits in ((1005, True), (1006, False)):
        path.write_text(json.dumps({"num_layers": asked}))
        if fits:
            check_counts(path)
        else:
            with pytest.raises(ValueError, match="num_layers"):
                check_counts(path)


def test_a_model_may_be_sixteen_times_as_large_as_its_files_and_64_mebibytes_more(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"x" * 1000)
    (tmp_path / "folder").mkdir()
    with torch.device("meta"):
        most = nn.ParameterList(nn.Parameter(torch.empty(size)) for size in (4000, (64 << 20) // 4))
        more = nn.ParameterList([*most, nn.Parameter(torch.empty(1))])
    check_bytes(tmp_path, most)
    with pytest.raises(ValueError, match=r"asks for weights of 67,124,868 bytes .* and has files of 1,000\."):
        check_bytes(tmp_path, more)


def test_a_model_that_another_thread_builds_is_not_counted(tmp_path):
    built = []
    with limited_parameters(write_tensors(tmp_path, 1)):
        thread = threading.Thread(target=lambda: built.append(build(ALWAYS + 1)))
        thread.start()
        thread.join()
        build(ALWAYS)
    assert len(built[0]) == ALWAYS + 1


def test_other_errors_of_the_block_stay_as_they_are(tmp_path):
    with pytest.raises(KeyError, match="own"), limited_parameters(write_tensors(tmp_path, 1)):
        raise KeyError("own")


@pytest.mark.parametrize("model_type", [name for name in CONFIGS if name in CONFIG_MAPPING])
def test_counts_that_multiply_are_refused_while_the_model_is_built(model_type, tmp_path):
    architecture, counts = CONFIGS[model_type]
    path = write_tensors(tmp_path, 40)
    path.write_text(json.dumps({"model_type": model_type, "architectures": [architecture], **counts}))
    with pytest.raises(ValueError, match=r"asks for more than 8,192 parameters, and the weights beside it are 40"):
        skeleton(tmp_path)
