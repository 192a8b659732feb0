"""`NxMTrainer.save_model(packed=True)` and `push_to_hub(packed=True)`."""

from types import SimpleNamespace

import pytest
import torch
import transformers.trainer

from nxm_hf.packing import NxMPackedConfig, read_packed_config
from nxm_hf.storage.verify import verify
from tests.support.saving import train_two_steps


@pytest.fixture
def trainer(tmp_path):
    return train_two_steps(tmp_path / "run")


def assert_packed(folder, model):
    assert read_packed_config(folder) is not None and verify(folder).ok
    loaded = type(model).from_pretrained(folder, quantization_config=NxMPackedConfig(dequantize=True))
    ours, theirs = loaded.state_dict(), model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert "`import nxm_hf` before" in (folder / "README.md").read_text()


def test_the_model_is_saved_packed_and_plain_again(trainer, tmp_path):
    folder = tmp_path / "out"
    trainer.save_model(str(folder), packed=True)
    assert_packed(folder, trainer.model)
    trainer.save_model(str(folder), packed=True)
    assert_packed(folder, trainer.model)
    trainer.save_model(str(folder))
    assert read_packed_config(folder) is None and verify(folder).ok
    assert "plain weights with zeros" in (folder / "README.md").read_text()


def test_checkpoints_hold_plain_weights(tmp_path):
    trainer = train_two_steps(tmp_path / "run", save_strategy="steps", save_steps=1)
    trainer.save_model(packed=True)
    assert_packed(tmp_path / "run", trainer.model)
    assert read_packed_config(tmp_path / "run" / "checkpoint-2") is None


def test_a_dense_model_cannot_be_saved_packed(tmp_path):
    trainer = train_two_steps(tmp_path / "run", sparsity="dense")
    with pytest.raises(ValueError, match="This model is dense"):
        trainer.save_model(packed=True)


@pytest.mark.parametrize("packed", [True, False])
def test_what_is_uploaded_is_packed_if_that_is_asked(packed, trainer, monkeypatch):
    uploaded = []

    def upload_folder(folder_path, **options):
        uploaded.append((read_packed_config(folder_path), verify(folder_path).ok))

    if hasattr(transformers.trainer, "hf_api"):
        monkeypatch.setattr(transformers.trainer, "hf_api", lambda: SimpleNamespace(upload_folder=upload_folder))
    else:  # older transformers
        monkeypatch.setattr(transformers.trainer, "upload_folder", upload_folder)
        repo = SimpleNamespace(repo_id="somebody/model")
        monkeypatch.setattr(transformers.trainer, "create_repo", lambda *args, **options: repo)
    trainer.hub_model_id = "somebody/model"
    trainer.push_to_hub(packed=packed)
    ((config, ok),) = uploaded
    assert ok and (config is not None) == packed
    assert ("`import nxm_hf` before" in _card(trainer)) == packed


def _card(trainer):
    with open(f"{trainer.args.output_dir}/README.md", encoding="utf-8") as file:
        return file.read()
