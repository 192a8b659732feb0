"""The how-to on LoRA runs as it is written."""

import json
import re
import shlex
from pathlib import Path

import pytest

from nxm_hf import SparsityRecord, verify
from nxm_hf.cli.main import main
from tests.support.adapters import peft
from tests.support.models import make_bert, make_tokenizer

pytestmark = pytest.mark.filterwarnings("default")  # those of another library are not ours
HOW_TO = Path(__file__).parents[2] / "docs/howto/lora.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", HOW_TO.read_text(), re.MULTILINE | re.DOTALL)


def test_the_how_to_runs_as_it_is_written_with_a_model_that_is_here(tmp_path, monkeypatch, caplog):
    assert peft.__version__
    monkeypatch.chdir(tmp_path)
    make_bert().bert.save_pretrained("model")
    make_tokenizer().save_pretrained("model")
    tokenizer = json.loads(Path("model/tokenizer.json").read_text())
    words = sorted(set(re.findall(r"\w+|[^\w\s]+", blocks("python")[0])))
    tokenizer["model"]["vocab"] |= {word: 4 + number % 46 for number, word in enumerate(words)}  # it knows our texts
    Path("model/tokenizer.json").write_text(json.dumps(tokenizer))
    names: dict = {}
    for block in blocks("python"):
        exec(re.sub(r'^MODEL = ".*"$', 'MODEL = "model"', block, flags=re.MULTILINE), names)
    assert verify("merged").ok and SparsityRecord.from_pretrained("merged").pruning["method"] == "alps"
    Path("merged").rename("first")
    for line in blocks("shell")[0].splitlines():
        assert main(shlex.split(line, comments=True)[1:]) == 0
    one, other = (Path(folder, "model.safetensors").read_bytes() for folder in ("first", "merged"))
    assert one == other
