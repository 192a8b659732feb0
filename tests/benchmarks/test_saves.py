"""The table of what a save costs: its rows, and that nothing of the user's is removed."""

import pytest

from benchmarks.saves import HEADINGS, main

SMALL = ["--blocks", "1", "--width", "32", "--vocabulary", "50", "--rounds", "1"]


def test_each_recipe_has_a_row_for_saves_in_the_training_and_one_for_those_after_it(tmp_path, capsys):
    main(["--where", str(tmp_path / "saves"), "--recipe", "asp", *SMALL])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("asp", HEADINGS[0]))]
    expected = ("peak", "in the training", "after the training")
    assert all(text in row for row, text in zip(rows, expected, strict=True))
    assert len(rows[1].split()) == len(HEADINGS) + 2 + 2  # three words, and three peaks
    assert not (tmp_path / "saves").exists()


def test_a_directory_that_is_there_is_not_removed(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--where", str(tmp_path), *SMALL])
    assert "is there already" in capsys.readouterr().err and tmp_path.exists()
