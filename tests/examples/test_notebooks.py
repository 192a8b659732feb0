"""The notebooks run from top to bottom without a network, and print what is stored in them."""

import pytest

from tests.support.notebooks import NOTEBOOKS, code_cells, keeps_output, read, run, same_output, stored_output


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_prints_what_is_stored(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, (shown, cell) in enumerate(zip(run(path), code_cells(read(path)), strict=True), 1):
        if keeps_output(cell):
            assert same_output(shown, stored_output(cell)), f"cell {number} prints\n{shown}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_stored_outputs_are_those_of_one_run_from_top_to_bottom(path):
    notebook = read(path)
    cells = code_cells(notebook)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert all(keeps_output(cell) or not cell["outputs"] for cell in cells)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    assert sum(bool(stored_output(cell)) for cell in cells) >= 1
    assert notebook["cells"][0]["source"][0].startswith("# ")


def test_there_are_three_notebooks():
    assert [path.stem for path in NOTEBOOKS] == ["compare_recipes", "prune_and_measure", "quicktour"]


def test_outputs_are_compared_word_by_word_and_numbers_with_a_tolerance():
    assert same_output("asp  0.812  1.00\n---  -----", "asp 0.85 1.00\n---- ---")
    assert not same_output("asp 0.812", "asp 0.99")
    assert not same_output("12 layers", "13 layers")
    assert not same_output("ste 0.812", "asp 0.812")
    assert not same_output("0.5 0.5", "0.5")
