"""nxm bench: what it prints and writes, and how it is typed."""

import json

import pytest
import torch

from nxm_hf.cli.main import main

pytest.importorskip("numba", reason="the kernels for CPUs need numba")
QUICK = ["--not-compiled", "--seconds", "0"]


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_several_numbers_may_follow_an_option(sparse, capsys):
    assert main(["bench", str(sparse), "--batch", "1", "2", "--length", "4", "8", "16", *QUICK, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["measurements"]
    shapes = [(row["batch"], row["length"]) for row in rows if row["subject"] == "whole model"]
    assert shapes == [(batch, length) for batch in (1, 2) for length in (4, 8, 16)]


def test_numbers_before_the_directory_and_with_commas_are_read(sparse, capsys):
    assert main(["bench", "--batch", "1,2", "--length=4", str(sparse), *QUICK]) == 0
    shown = capsys.readouterr().out
    assert "whole model          2      4" in shown and "after to_inference" in shown


def test_the_page_its_plots_and_the_numbers_are_written(sparse, tmp_path, capsys):
    out = tmp_path / "bench"
    words = ["--batch", "1", "--length", "4", "--threads", "1", "--dtype", "bfloat16", "--out", str(out)]
    assert main(["bench", str(sparse), *words, *QUICK]) == 0
    assert "Speed-up over dense" in (out / "bench.html").read_text()
    numbers = json.loads((out / "bench.json").read_text())
    assert (numbers["dtype"], numbers["threads"], numbers["name"]) == ("bfloat16", 1, "sparse")
    assert "bfloat16 on cpu, 1 threads" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch", "0"], "--batch '0' must be numbers of at least 1; write --batch 1 8 32."),
        (["--length", "long"], "--length 'long' must be numbers of at least 1"),
        (["--length", "4", "64"], "length=64 is more than the 32 tokens that this model reads"),
    ],
)
def test_wrong_numbers_are_one_line(sparse, words, message, capsys):
    assert main(["bench", str(sparse), *words, *QUICK]) == 2
    assert message in capsys.readouterr().err


def test_a_dense_model_holds_nothing_to_pack(dense, capsys):
    assert main(["bench", str(dense), *QUICK, "--length", "4"]) == 2
    assert "No layer of this BertForSequenceClassification can be packed" in capsys.readouterr().err
