"""The study of a language model: what it trains, what it keeps, and its table."""

import json

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import LlamaForCausalLM

from benchmarks.language_model import END, Cell, Study, main, parse_arguments
from tests.support.models import make_texts

SIZE = ["--width", "32", "--layers", "1", "--vocabulary", "300", "--context", "16", "--batch-size", "2"]
LENGTH = ["--steps", "10", "--share", "0.5", "--samples", "4"]
CELLS = ["--patterns", "2:4", "--methods", "magnitude", "wanda", "--recipes", "dense", "asp", "fade"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("\n".join(make_texts(300)))
    return str(file)


@pytest.fixture(scope="module")
def finished(text, tmp_path_factory):
    words = ["--text", text, *SIZE, *LENGTH, *CELLS, "--output-dir", str(tmp_path_factory.mktemp("out") / "lm")]
    main(words)
    return Study(parse_arguments(words)), words


def numbers(study):
    return {cell.slug: study.result(cell)["perplexity"] for cell in study.cells(0)}


def test_every_cell_is_measured_and_nothing_of_a_run_is_left(finished):
    study, _ = finished
    found = numbers(study)
    assert len(found) == 6 and len(set(found.values())) == 6
    assert all(1 < value < 400 for value in found.values())
    assert not list((study.folder / "runs").iterdir())
    steps = {"trained": 10, "pruned": 0, "tuned": 5}
    assert all(study.result(cell)["steps"] == steps[cell.how] for cell in study.cells(0))
    assert len({study.result(cell)["tokens"] for cell in study.cells(0)}) == 1


def test_what_is_missing_is_computed_again_to_the_same_number(finished):
    study, words = finished
    before = numbers(study)
    for name in ("tuned-fade-2_4-0", "pruned-wanda-2_4-0"):
        (study.folder / "cells" / f"{name}.json").unlink()
    main(words)
    assert numbers(study) == before


def test_a_training_that_was_stopped_ends_as_an_unbroken_one(finished):
    study, words = finished
    before, cell = numbers(study), Cell("tuned", "fade", "2:4", 0)
    (study.folder / "cells" / f"{cell.slug}.json").unlink()
    read: list[torch.nn.Module] = []

    def stop_at_the_fourth_batch(module, inputs):
        if isinstance(module, LlamaForCausalLM) and module.training:
            read.append(module)
            if len(read) == 4:
                raise KeyboardInterrupt

    hook = register_module_forward_pre_hook(stop_at_the_fourth_batch)
    with pytest.raises(KeyboardInterrupt):
        main(words)
    assert (study.folder / "runs" / cell.slug / "checkpoint-3").is_dir() and study.result(cell) is None
    main(words)
    hook.remove()
    assert len(read) == 6 and numbers(study) == before  # three steps, the fourth that was stopped, and two to the end


def test_the_rows_that_are_measured_are_not_trained_on(finished):
    study, _ = finished
    assert len(study.held_out) == len(study.rows) // 10 and study.train + study.held_out == study.rows
    assert len(study.tokenizer) <= 300 and study.tokenizer.eos_token == END
    ids = study.sequences.rows.flatten().tolist()
    assert study.tokenizer.decode(ids).startswith(study.train[0])
    assert study.tokenizer.decode(ids) in "\n\n".join(study.train)


def test_other_options_in_the_same_folder_are_refused(finished):
    _, words = finished
    with pytest.raises(SystemExit, match=r"was made with --steps 10\. Write that, or another --output-dir"):
        main([*words, "--steps", "11"])
    assert Study(parse_arguments([*words, "--patterns", "4:8", "--seeds", "1", "2"])).options.seeds == [1, 2]


def test_the_table_has_means_and_deviations_over_seeds(finished, tmp_path, capsys):
    _, words = finished
    words = [*words, "--output-dir", str(tmp_path), "--seeds", "0", "1", "2"]
    study = Study(parse_arguments(words))
    for seed, value in ((0, 10.0), (1, 12.0)):
        cell = Cell("tuned", "asp", "2:4", seed)
        (tmp_path / "cells" / f"{cell.slug}.json").write_text(json.dumps({"perplexity": value}))
    main([*words, "--render"])
    shown = capsys.readouterr().out.splitlines()
    assert "| tuned | `asp` | - | 11.00 ± 1.41 (2) |" in shown and "| tuned | `fade` | - | - |" in shown
    assert study.table().splitlines() == shown


def test_a_split_of_a_dataset_is_read_by_its_name(finished, tmp_path):
    _, words = finished
    (tmp_path / "rows").mkdir()
    for split in ("train", "test"):
        (tmp_path / "rows" / f"{split}.txt").write_text(f"{split} one\n\n{split} two\n")
    names = [f"{tmp_path / 'rows'}:default:{split}" for split in ("train", "test")]
    words = [*words, "--text", names[0], "--held-out", names[1], "--output-dir", str(tmp_path / "out")]
    study = Study(parse_arguments(words))
    assert study.train == ["train one", "train two"] and study.held_out == ["test one", "", "test two"]
