"""Commands as newcomers mistype them: one line, exit code 2, what to type, and no minutes of work before it."""

import pytest

from nxm_hf.cli.main import main
from tests.support.models import make_bert, make_model, make_texts, make_tokenizer
from tests.support.saved_models import make_sparse

COMMANDS = {
    "verify sparse 2:4": "Write --pattern 2:4.",
    "prune dense out 1:4": "Write --pattern 1:4.",
    "convert sparse out 4:8": "Missing option '--to'. Write --to 4:8.",
    "verify sparse --pattern": "nxm verify: Option '--pattern' requires an argument. See nxm verify --help.",
    "verify sparse --pattern 2/4": "Write '2:4'.",
    "help": "Write nxm --help.",
    "train config.yaml": "python examples/glue/run_glue.py CONFIG.yaml.",
    "version": "Write nxm --version.",
    "prune dense text.txt/out": "text.txt is a file, so nothing can be written into it. Name another directory.",
    "prune dense out --calibration text.txt --columns label": "Leave columns out.",
    "prune dense out --device gpu": "Write cpu",
    "bench sparse --device gpu": "Write cpu",
    "eval causal --device gpu --text text.txt": "Write cpu",
    "eval causal --text empty.txt": "empty.txt is empty. Name a file that holds text.",
    "eval causal --text text.txt --context 4096": "context=4096 is more than the 16 tokens that the model reads.",
    "flops --model dense --steps 0": "'--steps'",
    "demo out --pattern 2:5": "2:5 needs a multiple of 5",
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_sparse(make_bert(), tmp_path / "sparse")
    make_bert().save_pretrained(tmp_path / "dense")
    make_model("gpt2").save_pretrained(tmp_path / "causal")
    for name in ("dense", "causal"):
        make_tokenizer().save_pretrained(tmp_path / name)
    (tmp_path / "text.txt").write_text("\n".join(make_texts()))
    (tmp_path / "empty.txt").write_text("")
    return tmp_path


@pytest.mark.parametrize("typed", COMMANDS)
def test_a_mistyped_command_is_answered_with_what_to_type(typed, place, capsys):
    assert main(typed.split()) == 2
    shown = capsys.readouterr()
    answer = shown.err.strip().splitlines()[-1]
    assert shown.out == "" and COMMANDS[typed] in answer and "Traceback" not in shown.err
    assert answer.startswith("nxm") and len(answer) < 700 and not (place / "out").exists()


def test_options_may_have_underscores_as_scripts_of_transformers_have_them(place, capsys):
    assert main("prune dense out --on_indivisible skip --batch_size 4".split()) == 0
    assert (place / "out/nxm_config.json").is_file()
