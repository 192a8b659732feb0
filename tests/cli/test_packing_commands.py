"""`nxm pack` and `nxm unpack`."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nxm_hf import verify
from nxm_hf.cli.main import main
from tests.support.models import make_bert, make_texts, make_tokenizer
from tests.support.packed_models import save_both
from tests.support.saving import hashes_of


def test_pack_and_unpack_print_sizes_and_give_back_the_weights(tmp_path, capsys):
    _, plain, _ = save_both(tmp_path)
    assert main(["pack", str(plain), str(tmp_path / "b")]) == 0
    assert "12 layers: 34,816 bytes packed, 65,536 as plain weights (53.12%)" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "b")]) == 0
    assert main(["inspect", str(tmp_path / "b")]) == 0
    assert main(["unpack", str(tmp_path / "b"), str(tmp_path / "c")]) == 0
    assert hashes_of(plain)["model.safetensors"] == hashes_of(tmp_path / "c")["model.safetensors"]


@pytest.mark.parametrize("size", ["1GB", "30KB"])
@pytest.mark.parametrize("command", ["pack", "convert --to 1:4", "prune --pattern 1:4 --calibration"])
def test_the_only_variant_is_read_and_written_under_the_usual_names(command, size, tmp_path):
    model, plain, _ = save_both(tmp_path, max_shard_size=size)
    model.save_pretrained(tmp_path / "variant", max_shard_size=size, variant="fp16")
    make_tokenizer().save_pretrained(plain)
    make_tokenizer().save_pretrained(tmp_path / "variant")
    (tmp_path / "texts.txt").write_text("\n".join(make_texts()))
    name, *more = command.split()
    more += [str(tmp_path / "texts.txt")] if name == "prune" else []
    for source in (plain, tmp_path / "variant"):
        assert main([name, str(source), f"{source}-out", *more]) == 0
    ours, theirs = (
        {path.name: load_file(path) for path in Path(f"{tmp_path / source}-out").glob("*.safetensors")}
        for source in ("variant", plain.name)
    )
    assert ours.keys() == theirs.keys() and verify(tmp_path / "variant-out").ok
    for file, tensors in ours.items():
        assert tensors.keys() == theirs[file].keys()
        assert all(torch.equal(tensor, theirs[file][name]) for name, tensor in tensors.items())


def test_what_cannot_be_done_is_one_line_and_exit_code_two(tmp_path, capsys):
    _, plain, packed = save_both(tmp_path)
    for words in (["pack", packed, tmp_path / "x"], ["unpack", plain, tmp_path / "x"], ["pack", plain, packed]):
        assert main([str(word) for word in words]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"nxm {words[0]}: ") and error.count("\n") == 1


def test_report_reads_a_packed_model_that_was_pruned_without_training(tmp_path, capsys):
    make_bert().save_pretrained(tmp_path / "dense")
    assert main(["prune", str(tmp_path / "dense"), str(tmp_path / "a"), "--method", "magnitude"]) == 0
    assert main(["pack", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert main(["report", str(tmp_path / "b")]) == 0
    assert (tmp_path / "b" / "report.html").is_file()
