"""The script for a borrowed GPU, rehearsed without one: what it measures, and what it keeps when something fails."""

import json
import math

import pytest
import torch

from benchmarks import gpu
from benchmarks.cpu_products import compress, cpu_products, decompress
from benchmarks.gpu_sections import LIBRARIES, Setting, Stopwatch, layer_shapes, measure
from nxm_hf.inference.semi_structured import CUTLASS, SemiStructuredLinear
from tests.support.semi_structured import make_weight


@pytest.fixture
def setting(tmp_path):
    setting = Setting(torch.device("cpu"), True, tmp_path / "results")
    for folder in (setting.out, setting.sections):
        folder.mkdir()
    return setting


def rows_of(name, setting) -> list[dict]:
    """Run a section and return its rows."""
    gpu.run_section(name, setting)
    torch._dynamo.reset()
    return [json.loads(line) for line in (setting.sections / f"{name}.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_every_way_to_compute_a_layer_has_a_row(setting):
    rows = rows_of("layers", setting)
    shapes = {"64x64", "128x64", "64x128"}
    expected = {(shape, tokens, by) for shape in shapes for tokens in (1, 12) for by in ("dense", *LIBRARIES)}
    assert {(row["shape"], row["tokens"], row["by"]) for row in rows} >= expected
    for row in rows:
        assert "error" not in row and row["difference"] < 0.02 and math.isfinite(row["speed-up"])
        assert row["quartiles"][0] <= row["ms"] <= row["quartiles"][1]
        assert (row["bytes"] < 0.6 * 2 * math.prod(map(int, row["shape"].split("x")))) == (row["by"] in LIBRARIES)


@pytest.mark.slow
def test_models_run_eagerly_and_compiled_by_every_library(setting):
    rows = rows_of("models", setting)
    timed = [row for row in rows if "run" in row]
    ways = {(row["run"], row["by"]) for row in timed}
    assert ways == {(run, by) for run in ("eager", "compiled") for by in ("dense", *LIBRARIES)}
    assert all("error" not in row and row["difference"] < 0.05 for row in timed)
    (chosen,) = [row for row in rows if "report" in row]
    assert chosen["by"] == "to_inference: 0 of 7 layers" and "no backend computes on cpu" in chosen["report"]


@pytest.mark.slow
def test_a_section_is_a_process_and_its_failure_loses_no_other(setting, capsys):
    """Both in one command line: the masks come to their end, and what is stopped at once is reported as that."""
    words = ["--device", "cpu", "--tiny", "--out", str(setting.out)]
    assert gpu.main([*words, "--only", "masks"]) == 0
    assert gpu.main([*words, "--only", "tests", "--seconds", "0.01"]) == 1
    shown, page = capsys.readouterr().out, (setting.out / "results.md").read_text()
    assert "masks: done" in shown and "tests: stopped at the end of its time" in shown
    results = json.loads((setting.out / "results.json").read_text())
    assert [row["same as torch"] for row in results["rows"]["masks"] if "solver" in row] == [True, True]
    assert "| 2:4 | bfloat16 | " in page and "Triton: torch sees no GPU" in page
    assert {path.name for path in setting.out.iterdir()} == {"results.json", "results.md"}


def test_a_torn_line_of_a_killed_section_is_left_out(setting):
    row = {"model": "BERT-base", "shape": "768x768", "tokens": 1, "by": "dense", "ms": 0.5, "quartiles": [0.4, 0.6]}
    (setting.sections / "layers.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row)[:-20])
    gpu.write_results(setting, {"layers": "stopped after 9 s"})
    assert json.loads((setting.out / "results.json").read_text())["rows"] == {"layers": [row]}
    page = (setting.out / "results.md").read_text()
    assert "## layers: stopped after 9 s" in page and "| BERT-base | 768x768 | 1 | dense | 0.5 | 0.4 to 0.6 |" in page


def test_an_alternative_that_raises_has_its_error_in_its_row(setting):
    def fail() -> torch.Tensor:
        raise RuntimeError("not supported | here")

    rows: list[dict] = []
    calls = {"dense": lambda: torch.ones(2), "broken": fail, "off": lambda: torch.full((2,), 1.5)}
    sizes = dict.fromkeys(calls, 4)
    measure(Stopwatch(setting, kernels_alone=True), calls, {"tokens": 1}, rows.append, sizes)
    by = {row["by"]: row for row in rows}
    assert by["broken"] == {"tokens": 1, "by": "broken", "error": "RuntimeError: not supported | here"}
    assert (by["dense"]["difference"], by["off"]["difference"]) == (0, 0.5)


def test_without_a_gpu_it_says_how_to_rehearse(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main(["--out", str(tmp_path)])
    assert "--device cpu --tiny" in capsys.readouterr().err


def test_the_shapes_are_those_of_the_three_models(tmp_path):
    shapes = list(layer_shapes(Setting(torch.device("cpu"), False, tmp_path)))
    assert {(name, shape) for name, shape, _ in shapes} == {
        *(("BERT-base", shape) for shape in ((768, 768), (3072, 768), (768, 3072))),
        *(("Llama-1B", shape) for shape in ((2048, 2048), (512, 2048), (8192, 2048), (2048, 8192))),
        *(("BERT-large", shape) for shape in ((1024, 1024), (4096, 1024), (1024, 4096))),
    }
    assert sum(gpu.BUDGETS.values()) < 600


def test_products_on_the_cpu_are_there_only_inside_of_the_with():
    weight = make_weight(32, 64)
    assert torch.equal(decompress(compress(weight)), weight)
    layer = SemiStructuredLinear(weight, None, CUTLASS)
    with cpu_products():
        assert layer(torch.ones(1, 64).bfloat16()).shape == (1, 32)
    with pytest.raises(NotImplementedError):
        layer(torch.ones(1, 64).bfloat16())
