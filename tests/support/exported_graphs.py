"""The matrices of exported graphs, as they are stored and as the numbers that they stand for."""

from dataclasses import dataclass

import numpy


@dataclass(frozen=True)
class Stored:
    """A matrix of a graph: what the file holds, and the numbers that it stands for."""

    name: str
    stored: numpy.ndarray
    numbers: numpy.ndarray


def of_onnx(path) -> list[Stored]:
    """Read the matrices of an ONNX file. `quantize_dynamic` puts scale and zero point beside each under its name."""
    import onnx

    arrays = {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}
    found = []
    for name, stored in arrays.items():
        if stored.ndim != 2:
            continue
        numbers = stored
        if name.endswith("_quantized"):
            plain = name.removesuffix("_quantized")
            scale, zero = arrays[f"{plain}_scale"], arrays[f"{plain}_zero_point"]
            numbers = (stored.astype(numpy.float32) - zero.astype(numpy.float32)) * scale  # by column: [in, out]
        found.append(Stored(name, stored, numbers))
    return found


def of_openvino(model) -> list[Stored]:
    """Read the matrices of a model of OpenVINO, following each through what dequantizes it."""
    constants = [node for node in model.get_ops() if node.get_type_name() == "Constant" and len(node.shape) == 2]
    found = [Stored(node.friendly_name, node.data, _through(node, node.data)) for node in constants]
    return [one for one in found if one.stored.shape == one.numbers.shape]  # the others are scales and zero points


def _through(node, numbers: numpy.ndarray) -> numpy.ndarray:
    """Follow Convert, Subtract and Multiply by a constant."""
    following = [use.get_node() for use in node.output(0).get_target_inputs()]
    if len(following) != 1 or following[0].get_type_name() not in ("Convert", "Subtract", "Multiply"):
        return numbers
    (after,) = following
    if after.get_type_name() == "Convert":
        return _through(after, numbers.astype(numpy.float32))
    sources = [port.get_source_output().get_node() for port in after.inputs()]
    other = next(source for source in sources if source != node)
    while other.get_type_name() == "Convert":
        other = other.input(0).get_source_output().get_node()
    if other.get_type_name() != "Constant":
        return numbers
    amount = other.data.astype(numpy.float32)
    return _through(after, numbers - amount if after.get_type_name() == "Subtract" else numbers * amount)


def held_as(weight: numpy.ndarray, graph: list[Stored], tolerance: float) -> numpy.ndarray:
    """Return what a graph stores for a matrix [out, in], turned to [out, in].

    Args:
        weight: The matrix.
        graph: The matrices of the graph.
        tolerance: By how much the numbers may differ, as a fraction of the largest weight.
    """
    for one in graph:
        for turned in (lambda array: array, lambda array: array.T):
            numbers = turned(one.numbers)
            if numbers.shape == weight.shape and abs(numbers - weight).max() <= tolerance * abs(weight).max():
                return turned(one.stored)
    raise AssertionError(f"no matrix of the graph is this weight of shape {weight.shape}")
