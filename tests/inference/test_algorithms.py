"""The cache of cuSPARSELt's algorithms: what it keeps, and what it does not believe."""

import json
import logging
import os
from dataclasses import replace

import pytest
import torch
from huggingface_hub import constants

from nxm_hf.inference.algorithms import AlgorithmCache, Installation, Product, cache_folder, rounded_tokens

HERE = Installation("A GPU", 702, "2.13.0")
PRODUCT = Product(torch.bfloat16, (768, 3072), True, 128)


def found(folder, product=PRODUCT, installation=HERE) -> int | None:
    """Return what a new cache knows of a product, without a search."""
    try:
        return AlgorithmCache(installation, folder).find(product, lambda: int("unknown"))
    except ValueError:
        return None


def test_what_was_found_is_found_again_without_a_search(tmp_path):
    cache = AlgorithmCache(HERE, tmp_path / "new")
    searches = iter([7])
    assert [cache.find(PRODUCT, lambda: next(searches)) for _ in range(3)] == [7] * 3
    assert found(tmp_path / "new") == 7


@pytest.mark.parametrize(
    "change",
    [dict(dtype=torch.float16), dict(shape=(3072, 768)), dict(bias=False), dict(tokens=256)],
    ids=lambda change: next(iter(change)),
)
def test_every_part_of_a_product_tells_it_apart(change, tmp_path):
    AlgorithmCache(HERE, tmp_path).find(PRODUCT, lambda: 7)
    assert found(tmp_path) == 7 and found(tmp_path, replace(PRODUCT, **change)) is None


@pytest.mark.parametrize("change", [dict(gpu="Another"), dict(cusparselt=None), dict(torch_version="2.14.0")])
def test_another_installation_has_a_file_of_its_own(change, tmp_path):
    AlgorithmCache(HERE, tmp_path).find(PRODUCT, lambda: 7)
    other = replace(HERE, **change)
    assert found(tmp_path, installation=other) is None
    AlgorithmCache(other, tmp_path).find(PRODUCT, lambda: 9)
    assert (found(tmp_path), found(tmp_path, installation=other)) == (7, 9) and len(list(tmp_path.iterdir())) == 2


def whole() -> dict:
    header = {"format": 1, "gpu": "A GPU", "cusparselt": 702, "torch_version": "2.13.0"}
    return {**header, "algorithms": {str(PRODUCT): 7}}


DAMAGED = {
    "empty": b"",
    "torn": json.dumps(whole()).encode()[:-9],
    "no text": b"\xff\xfe\x00",
    "nested too deeply": b"[" * 100_000,
    "a list": b"[7]",
    "without numbers": json.dumps({**whole(), "algorithms": None}).encode(),
    "a list of numbers": json.dumps({**whole(), "algorithms": [7]}).encode(),
    "a word": json.dumps({**whole(), "algorithms": {str(PRODUCT): "7"}}).encode(),
    "a fraction": json.dumps({**whole(), "algorithms": {str(PRODUCT): 7.0}}).encode(),
    "true": json.dumps({**whole(), "algorithms": {str(PRODUCT): True}}).encode(),
    "negative": json.dumps({**whole(), "algorithms": {str(PRODUCT): -1}}).encode(),
    "another GPU": json.dumps({**whole(), "gpu": "Another"}).encode(),
    "another version": json.dumps({**whole(), "cusparselt": 602}).encode(),
    "another format": json.dumps({**whole(), "format": 2}).encode(),
    "more than ours": json.dumps({**whole(), "note": "?"}).encode(),
}


def test_a_file_as_it_is_written_is_believed(tmp_path):
    path = AlgorithmCache(HERE, tmp_path).path
    path.write_text(json.dumps(whole()))
    assert found(tmp_path) == 7
    AlgorithmCache(HERE, tmp_path).find(replace(PRODUCT, tokens=8), lambda: 1)
    assert json.loads(path.read_text())["algorithms"] == {str(PRODUCT): 7, str(replace(PRODUCT, tokens=8)): 1}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_or_foreign_file_is_ignored_and_then_replaced(damage, tmp_path):
    path = AlgorithmCache(HERE, tmp_path).path
    path.write_bytes(DAMAGED[damage])
    assert AlgorithmCache(HERE, tmp_path).find(PRODUCT, lambda: 3) == 3
    assert found(tmp_path) == 3 and [each.name for each in tmp_path.iterdir()] == [path.name]


def test_two_processes_that_write_lose_nothing(tmp_path):
    one, other = AlgorithmCache(HERE, tmp_path), AlgorithmCache(HERE, tmp_path)
    one.find(PRODUCT, lambda: 7)
    other.find(replace(PRODUCT, tokens=8), lambda: 1)
    assert found(tmp_path) == 7 and found(tmp_path, replace(PRODUCT, tokens=8)) == 1


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch, caplog):
    AlgorithmCache(HERE, tmp_path).find(PRODUCT, lambda: 7)

    def fail(*names):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with caplog.at_level(logging.WARNING, "nxm_hf"):
        cache = AlgorithmCache(HERE, tmp_path)
        assert [cache.find(replace(PRODUCT, tokens=n), lambda: 1) for n in (8, 16)] == [1, 1]
    assert found(tmp_path) == 7 and found(tmp_path, replace(PRODUCT, tokens=8)) is None
    assert len(caplog.records) == 1 and "disk full" in caplog.text


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    assert AlgorithmCache(HERE, tmp_path / "file" / "below").find(PRODUCT, lambda: 7) == 7


def test_caches_stand_where_hugging_face_keeps_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "nxm_hf"


@pytest.mark.parametrize("tokens", [1, 7, 8, 9, 100, 128, 129, 4096])
def test_tokens_are_rounded_up_to_a_power_of_two(tokens):
    rounded = rounded_tokens(tokens)
    assert rounded.bit_count() == 1 and rounded >= max(tokens, 8) and (rounded < 2 * tokens or rounded == 8)


def test_an_installation_is_described_by_torch(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    monkeypatch.setattr(torch.backends.cusparselt, "version", lambda: 702)
    assert Installation.of(torch.device("cuda:1")) == Installation("GPU 1", 702, str(torch.__version__))
