"""Saved models, sparse and dense, and ways to damage them."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import nxm_hf

QUERY = "bert.encoder.layer.0.attention.self.query"


def make_sparse(model, folder, pattern="2:4"):
    """Save the model as a sparse one; its record stands in config.json."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = nxm_hf.attach(model, optimizer, nxm_hf.NxMConfig("asp", pattern=pattern), total_steps=1)
    engine.finish()
    model.save_pretrained(folder)
    return folder


def edit_weights(folder: Path, edit) -> None:
    """Change the saved weights by a function of their dict."""
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder: Path, **changes) -> None:
    """Change keys of the saved model's config."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
