"""Exported models: every zero is in the graph, in fp32 and in symmetric int8, and the logits are those of torch."""

import re
from pathlib import Path

import numpy
import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from nxm_hf import prune, verify
from nxm_hf.layers.find import find_layers
from tests.support.exported_graphs import Stored, held_as, of_onnx, of_openvino
from tests.support.models import make_batches, make_bert

REASON = "exported models need onnx, onnxscript, onnxruntime, openvino and nncf; docs/howto/export.md has the command"
for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason=REASON)
openvino = pytest.importorskip("openvino", reason=REASON)
nncf = pytest.importorskip("nncf", reason=REASON)
export = pytest.importorskip("benchmarks.export", reason=REASON)

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of the exporters, about themselves
HOWTO = Path(__file__).parents[2] / "docs/howto/export.md"
INT8 = 1.01 / 127  # one step: how far int8 may move a weight, as a fraction of the largest
SHAPE = dict(vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
MODELS = {
    "bert": lambda: make_bert(num_hidden_layers=1),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, pad_token_id=0, use_cache=False)),
}


class Exported:
    """A sparse model, its inputs and logits, and its ONNX file."""

    def __init__(self, name, folder):
        self.model = MODELS[name]().eval()
        prune(self.model, pattern="2:4", method="magnitude")
        self.inputs = make_batches(name, 1)[0]
        self.logits = export.in_torch(self.model, self.inputs)()
        self.path = export.write_onnx(self.model, self.inputs, folder / "model.onnx")
        self.weights = {layer.name: layer.matrix(layer.weight.detach()).numpy() for layer in find_layers(self.model)}

    def stored(self, graph, tolerance=0.0):
        """Yield each pruned weight with what the graph stores for it, both [out, in]."""
        for weight in self.weights.values():
            yield weight, held_as(weight, graph, tolerance)

    def keeps_zeros(self, graph, tolerance=0.0):
        """Return True if the graph stores 0 wherever a pruned weight is zero."""
        return all(not stored[weight == 0].any() for weight, stored in self.stored(graph, tolerance))

    def error(self, run):
        """Return the largest error of logits, as a fraction of the largest logit."""
        return abs(run() - self.logits).max() / abs(self.logits).max()


@pytest.fixture(scope="module", params=("bert", "llama"))
def exported(request, tmp_path_factory):
    return Exported(request.param, tmp_path_factory.mktemp(request.param))


def test_the_onnx_file_holds_every_pruned_weight_bit_for_bit_and_gives_the_logits_of_torch(exported):
    graph = of_onnx(exported.path)
    assert verify(exported.model).ok and len(exported.weights) in (6, 7)
    assert exported.keeps_zeros(graph)
    for weight, stored in exported.stored(graph):
        assert numpy.count_nonzero(stored == 0) == weight.size // 2
    assert exported.error(export.in_onnxruntime(exported.path, exported.inputs)) < 1e-5


def test_the_onnx_file_takes_other_numbers_of_rows_and_tokens(exported):
    inputs = {name: tensor[:1, :5] for name, tensor in exported.inputs.items()}
    logits = export.in_torch(exported.model, inputs)()
    assert abs(export.in_onnxruntime(exported.path, inputs)() - logits).max() < 1e-5 * abs(logits).max()


def test_openvino_holds_every_pruned_weight_from_onnx_and_from_torch(exported, tmp_path):
    models = {
        "onnx": openvino.convert_model(exported.path),
        "torch": openvino.convert_model(exported.model, example_input=dict(exported.inputs)),
    }
    for source, model in models.items():
        assert exported.keeps_zeros(of_openvino(model)), source
        assert exported.error(export.in_openvino(model, exported.inputs)) < 1e-5, source
        assert exported.error(export.in_openvino(model, exported.inputs, **export.SPARSE_RATE)) < 1e-5, source
    openvino.save_model(models["torch"], tmp_path / "half.xml")  # in fp16, which is its default
    half = openvino.Core().read_model(tmp_path / "half.xml")
    assert exported.keeps_zeros(of_openvino(half), tolerance=1e-3)


def test_symmetric_int8_of_onnxruntime_stores_zeros_as_zeros_and_asymmetric_does_not(exported):
    symmetric, asymmetric = (export.write_int8(exported.path, symmetric) for symmetric in (True, False))
    assert exported.keeps_zeros(of_onnx(symmetric), INT8)
    assert not exported.keeps_zeros(of_onnx(asymmetric), INT8)
    for path in (symmetric, asymmetric):  # the numbers are zero in both: only a reader of the integers is misled
        numbers = [Stored(one.name, one.numbers, one.numbers) for one in of_onnx(path)]
        assert exported.keeps_zeros(numbers, INT8)
        assert exported.error(export.in_onnxruntime(path, exported.inputs)) < 0.05
    assert exported.error(export.in_openvino(openvino.convert_model(symmetric), exported.inputs)) < 0.05


def test_symmetric_int8_of_openvino_stores_zeros_as_zeros_and_asymmetric_does_not(exported):
    for weights_only in (True, False):
        model = export.quantized_for_openvino(exported.path, exported.inputs, weights_only)
        assert exported.error(export.in_openvino(model, exported.inputs)) < 0.1
        stored = [one for one in of_openvino(model) if one.stored.dtype == numpy.int8]
        if weights_only:
            assert exported.keeps_zeros(stored, INT8)
        else:  # smooth quantization has scaled the columns, and so only the places of zeros can be compared
            zeros = {(matrix == 0).tobytes() for one in stored for matrix in (one.stored, one.stored.T)}
            kept = [(weight == 0).tobytes() in zeros for weight in exported.weights.values()]
            assert sum(kept) >= len(kept) - 2  # a small weight may round to zero as well
    plain = openvino.convert_model(exported.path)
    asymmetric = nncf.compress_weights(plain, mode=nncf.CompressWeightsMode.INT8_ASYM)
    assert not exported.keeps_zeros(of_openvino(asymmetric), INT8)


def test_the_howto_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = MODELS["bert"]()
    prune(model, pattern="2:4", method="magnitude")
    model.save_pretrained("bert-2of4")
    blocks = re.findall(r"^```python\n(.*?)^```$", HOWTO.read_text(), re.MULTILINE | re.DOTALL)
    names: dict = {}
    for block in blocks:
        exec(compile(block, str(HOWTO), "exec"), names)
    assert len(blocks) >= 4
    assert all(Path(name).is_file() for name in ("bert.onnx", "bert-int8.onnx", "bert.xml"))


@pytest.mark.parametrize("exported", ["bert"], indirect=True)
def test_the_table_has_a_row_for_each_way_to_run_a_model(exported):
    work = dict(export.runners(exported.model, exported.inputs, exported.path))
    rows = list(export.rows(work, work, rounds=3))
    assert [row[0] for row in rows] == list(work) and len(rows) == 8
    assert all(len(row) == 5 and 0 < float(row[3]) and float(row[4]) < 0.1 for row in rows)


def test_times_are_taken_in_turns_after_two_runs_of_each():
    seen = []
    work = {name: lambda name=name: seen.append(name) for name in ("a", "b")}
    times = export.in_turns(work, rounds=3)
    assert seen == ["a", "a", "b", "b"] + ["a", "b"] * 3
    assert [len(one) for one in times.values()] == [3, 3]
