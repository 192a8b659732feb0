"""The report counts what was replaced, and prints a row for each kind of layer."""

from nxm_hf.inference import ConvertedLayer, InferenceReport


def layer(name, backend, speedups, reason):
    """Return the description of a layer of one shape."""
    return ConvertedLayer(name, (32, 64), "2:4", backend, speedups, reason)


def test_layers_of_a_kind_share_a_row():
    layers = (
        layer("a", "cpu", {1: 2.0, 16: 1.5}, "faster"),
        layer("b", "cpu", {1: 2.0, 16: 1.5}, "faster"),
        layer("c", "dense", {}, "it holds no n:4 or n:8 pattern"),
    )
    report = InferenceReport(layers, (1, 16), 2, 4 * 2**20, 3 * 2**20)
    assert [each.name for each in report.converted] == ["a", "b"]
    text = str(report)
    assert "2       32x64  2:4      cpu          2.00x     1.50x      faster" in text
    assert "2 of 3 linear layers compute with packed weights. Weights take 3.0 MiB, and took 4.0 MiB." in text
    assert len(text.splitlines()) == 5
