"""The time of exported models: a dense file beside a 2:4 file, in ONNX Runtime and in OpenVINO, in fp32 and int8.

    python benchmarks/export.py path/to/a/model                                  # 8 rows of 128 tokens
    python benchmarks/export.py path/to/a/model --batch 1 --length 16 --rounds 200

It needs onnx, onnxscript, onnxruntime, openvino and nncf. The model is loaded as a classifier, once as it is and once
pruned by magnitude. All variants run in turns in one process, on one thread and on the same random tokens. Numbers
are medians of CPU time. "ratio" is the median over the turns of the time of the sparse file over that of the dense one.
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nncf
import numpy
import onnxruntime
import openvino
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from nxm_hf import prune
from nxm_hf.text import table

Inputs = dict[str, Tensor]
Runner = Callable[[], NDArray[Any]]  # runs a model once, and returns its logits

# Above this fraction of zeros, OpenVINO packs a weight. 2:4 has 0.5.
SPARSE_RATE = {"CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE": 0.4}


def write_onnx(model: nn.Module, inputs: Inputs, path: Path) -> Path:
    """Write a model as ONNX, for any number and length of rows.

    Args:
        model: The model, in evaluation mode.
        inputs: Example inputs, [rows, tokens] each.
        path: The file to write.

    Returns:
        The file.
    """
    sizes = {name: {0: "rows", 1: "tokens"} for name in inputs}
    torch.onnx.export(
        model, kwargs=inputs, f=path, dynamo=True, dynamic_shapes=sizes, external_data=False, verbose=False
    )
    return path


def write_int8(path: Path, symmetric: bool = True) -> Path:
    """Write the int8 form of an ONNX file: weights by output channel; activations are quantized as it runs.

    Args:
        path: The file.
        symmetric: Whether the zero of each channel is the integer 0.

    Returns:
        The new file, beside it.
    """
    out = path.with_name(f"{path.stem}-{'int8' if symmetric else 'uint8'}.onnx")
    options = {"weight_type": QuantType.QInt8 if symmetric else QuantType.QUInt8, "per_channel": True}
    quantize_dynamic(path, out, extra_options={"WeightSymmetric": symmetric}, **options)
    return out


def in_onnxruntime(path: Path, inputs: Inputs) -> Runner:
    """Return a runner of an ONNX file in ONNX Runtime, on one thread.

    Args:
        path: The file.
        inputs: What to run it on.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
    return lambda: numpy.asarray(session.run(None, arrays)[0])


def in_openvino(model: Any, inputs: Inputs, **properties: object) -> Runner:
    """Return a runner of a model in OpenVINO, on one thread.

    Args:
        model: The model of OpenVINO.
        inputs: What to run it on.
        properties: Further properties of the device. The default precision is fp32; OpenVINO's own is bf16 on CPUs
            that have it.
    """
    words = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1} | properties
    compiled = openvino.compile_model(model, "CPU", words)
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
    return lambda: numpy.asarray(compiled(arrays)[0])


def in_torch(model: nn.Module, inputs: Inputs) -> Runner:
    """Return a runner of a model in torch.

    Args:
        model: The model.
        inputs: What to run it on.
    """

    def run() -> NDArray[Any]:
        with torch.inference_mode():
            return numpy.asarray(model(**inputs).logits)

    return run


def quantized_for_openvino(path: Path, inputs: Inputs, weights_only: bool = False) -> Any:
    """Return a model of OpenVINO in int8, with symmetric weights.

    Args:
        path: An ONNX file.
        inputs: Inputs to see the range of the activations with.
        weights_only: Whether activations are quantized only as it runs, row by row, so that their range is not needed.
    """
    model = openvino.convert_model(path)
    if weights_only:
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
    return nncf.quantize(model, nncf.Dataset([arrays]), model_type=nncf.ModelType.TRANSFORMER, subset_size=1)


def runners(model: nn.Module, inputs: Inputs, path: Path) -> Iterator[tuple[str, Runner]]:
    """Yield a name and a runner for each way to run a model.

    Args:
        model: The model, in evaluation mode.
        inputs: What to run it on.
        path: Its ONNX file.
    """
    yield "torch fp32", in_torch(model, inputs)
    yield "ONNX Runtime fp32", in_onnxruntime(path, inputs)
    yield "ONNX Runtime int8", in_onnxruntime(write_int8(path), inputs)
    yield "OpenVINO fp32", in_openvino(openvino.convert_model(path), inputs)
    yield "OpenVINO fp32, sparse rate 0.4", in_openvino(openvino.convert_model(path), inputs, **SPARSE_RATE)
    yield "OpenVINO int8 weights", in_openvino(quantized_for_openvino(path, inputs, weights_only=True), inputs)
    int8 = quantized_for_openvino(path, inputs)
    yield "OpenVINO int8", in_openvino(int8, inputs)
    yield "OpenVINO int8, sparse rate 0.4", in_openvino(int8, inputs, **SPARSE_RATE)


def in_turns(work: dict[str, Runner], rounds: int) -> dict[str, list[float]]:
    """Run all work in turns, and return the CPU times of each in milliseconds.

    Args:
        work: Runners by name. Each runs twice before the first turn.
        rounds: The number of turns.
    """
    for run in work.values():
        run(), run()
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, run in work.items():
            start = time.process_time()
            run()
            times[name].append(1000 * (time.process_time() - start))
    return times


def rows(dense: dict[str, Runner], sparse: dict[str, Runner], rounds: int) -> Iterator[tuple[str, ...]]:
    """Measure both files, and yield a row of the table for each way to run them.

    Args:
        dense: Runners of the dense model by name.
        sparse: Runners of the sparse model by the same names.
        rounds: The number of turns.
    """
    both = {f"{kind} {name}": run for name in dense for kind, run in (("dense", dense[name]), ("sparse", sparse[name]))}
    times = in_turns(both, rounds)
    torch_logits = sparse["torch fp32"]()
    for name, run in sparse.items():
        pair = times[f"dense {name}"], times[f"sparse {name}"]
        ratio = statistics.median(after / before for before, after in zip(*pair, strict=True))
        error = abs(run() - torch_logits).max() / abs(torch_logits).max()
        yield (name, *(f"{statistics.median(one):.1f}" for one in pair), f"{ratio:.2f}", f"{error:.0e}")


def main() -> None:
    """Measure a model in all ways and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="directory or Hub name of a model")
    parser.add_argument("--pattern", default="2:4")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=20)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    model = AutoModelForSequenceClassification.from_pretrained(chosen.model).eval()
    pruned = copy.deepcopy(model)
    prune(pruned, pattern=chosen.pattern, method="magnitude")
    ids = torch.randint(model.config.vocab_size, (chosen.batch, chosen.length))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with tempfile.TemporaryDirectory() as folder:
        dense, sparse = (
            dict(runners(one, inputs, write_onnx(one, inputs, Path(folder, f"{name}.onnx"))))
            for name, one in (("dense", model), ("sparse", pruned))
        )
        found = list(rows(dense, sparse, chosen.rounds))
    print(table(("", "dense, ms", f"{chosen.pattern}, ms", "ratio", "error beside torch"), found))


if __name__ == "__main__":
    main()
