"""The options of the commands: their help, their choices, and how commands are made of functions."""

import inspect
import subprocess
import sys
from typing import get_args

import pytest

from nxm_hf import pruners
from nxm_hf.cli import options
from nxm_hf.cli.main import COMMANDS, main

NAMES = [function.__name__.removesuffix("_command") for function in COMMANDS]
PARAMETERS = {
    (name, parameter.name): get_args(parameter.annotation)[1]
    for name, command in zip(NAMES, COMMANDS, strict=True)
    for parameter in inspect.signature(command).parameters.values()
}


def test_help_has_one_line_for_each_command(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name, command in zip(NAMES, COMMANDS, strict=True):
        words = " ".join(shown.partition(f"\n  {name} ")[2].split())
        assert words.startswith(inspect.getdoc(command).partition("\n")[0])
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("name", NAMES)
def test_every_command_explains_itself_and_each_of_its_options(name, capsys):
    for flag in ("--help", "-h"):
        assert main([name, flag]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert f"Usage: nxm {name}" in shown
        for (command, parameter), info in PARAMETERS.items():
            if command == name:
                names = (f"--{parameter.replace('_', '-')}", "--json" if parameter == "as_json" else "--help me")
                assert info.help.partition("  ")[0] in shown
                assert type(info).__name__ == "ArgumentInfo" or any(word in shown for word in names)


def test_the_methods_that_can_be_chosen_are_those_of_the_catalogue():
    assert list(get_args(options.MethodName)) == pruners.names()


def test_a_command_is_one_function(monkeypatch, capsys):
    def say_twice_command(word: options.Model, times_more: options.Steps = 0) -> int:
        """Say a word.

        And more.
        """
        print((word + " ") * (2 + times_more))
        return 7

    monkeypatch.setattr("nxm_hf.cli.main.COMMANDS", (*COMMANDS, say_twice_command))
    assert main(["say-twice", "hm", "--times-more", "1"]) == 7
    assert capsys.readouterr().out.strip() == "hm hm hm"
    main(["--help"])
    assert "  say-twice  Say a word.\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, completed",
    [
        ("nxm ver", ["verify"]),
        ("nxm re", ["recipes", "rewind", "report"]),
        ("nxm prune a b --method a", ["adaprune", "alps"]),
        ("nxm verify --sum", ["--summary"]),
    ],
)
def test_a_shell_completes_commands_options_and_choices(words, completed):
    asked = {"_NXM_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    code = f"import os, sys; os.environ.update({asked!r}); from nxm_hf.cli.main import main; sys.exit(main([]))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == completed


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["verfy"], ["verify"], ["prune", "--help"], ["recipes"], ["recipes", "--json"]]
)
def test_what_needs_no_model_imports_neither_torch_nor_transformers(words):
    code = (
        f"import sys; from nxm_hf.cli.main import main; main({words!r}); "
        "sys.exit(str([name for name in ('torch', 'transformers', 'numpy', 'huggingface_hub') if name in sys.modules]))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stderr.splitlines()[-1] == "[]"
