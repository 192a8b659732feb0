"""The parsers that are made from the signatures of commands."""

import pytest

from nxm_hf.cli import options
from nxm_hf.cli.main import COMMANDS, main

NAMES = [function.__name__.removesuffix("_command") for function in COMMANDS]


def test_help_has_one_line_for_each_command(capsys):
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in NAMES:
        assert sum(line.startswith(f"  {name} ") for line in lines) == 1
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("name", NAMES)
def test_every_command_explains_itself(name, capsys):
    assert main([name, "--help"]) == 0
    assert f"usage: nxm {name}" in capsys.readouterr().out


def test_a_command_is_one_function(monkeypatch, capsys):
    def say_twice_command(word: options.ModelDirectory, *, times_more: options.PatternText = "0") -> int:
        """Say a word.

        And more.
        """
        print((word + " ") * (2 + int(times_more)))
        return 7

    monkeypatch.setattr("nxm_hf.cli.main.COMMANDS", (*COMMANDS, say_twice_command))
    assert main(["say-twice", "hm", "--times-more", "1"]) == 7
    assert capsys.readouterr().out.strip() == "hm hm hm"
    main(["--help"])
    assert "  say-twice  Say a word.\n" in capsys.readouterr().out
