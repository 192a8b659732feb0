"""A container around a Transformers model, of the shape of a SentenceTransformer, and its Trainer."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import cosine_similarity
from transformers import AutoModel, Trainer

from tests.support.models import make_bert, make_texts, make_tokenizer

QUERY = "encoder.layer.0.attention.self.query"  # a layer of the model inside


class Backbone(nn.Module):
    """Holds the model of Transformers, and saves it as it is."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, features):
        return features | {"tokens": self.model(**features).last_hidden_state}

    def save(self, path):
        self.model.save_pretrained(path)


class Head(nn.Module):
    """Pools the tokens, and projects the mean: a module with weights of its own and a config that is no model's."""

    def __init__(self, width=32):
        super().__init__()
        self.linear = nn.Linear(width, 8)

    def forward(self, features):
        mask = features["attention_mask"][..., None]
        return self.linear((features["tokens"] * mask).sum(1) / mask.sum(1))

    def save(self, path):
        save_file(self.state_dict(), path / "model.safetensors")
        (path / "config.json").write_text(json.dumps({"in_features": self.linear.in_features}))


class Encoder(nn.Sequential):
    """Has `save_pretrained` and no `from_pretrained`; writes its model into its own folder or the root, and a card."""

    def __init__(self, model, in_root=True):
        super().__init__(Backbone(model), Head())
        self.in_root, self.tokenizer = in_root, make_tokenizer()

    def save_pretrained(self, path, card=True):
        self.save(path, card=card)

    def save(self, path, card=True):
        modules = []
        for number, module in enumerate(self):
            name = "" if number == 0 and self.in_root else f"{number}_{type(module).__name__}"
            folder = Path(path) / name
            folder.mkdir(parents=True, exist_ok=True)
            module.save(folder)
            modules.append({"idx": number, "name": str(number), "path": name, "type": type(module).__name__})
        (Path(path) / "modules.json").write_text(json.dumps(modules))
        if card:
            (Path(path) / "README.md").write_text("# An encoder\n")

    @classmethod
    def load(cls, path):
        first, second = json.loads((Path(path) / "modules.json").read_text())
        encoder = cls(AutoModel.from_pretrained(Path(path) / first["path"]), in_root=not first["path"])
        encoder[1].load_state_dict(load_file(Path(path) / second["path"] / "model.safetensors"))
        return encoder


class Pair(nn.Module):
    """Two models in one container."""

    def __init__(self):
        super().__init__()
        self.query, self.document = Backbone(make_bert(0).bert), Backbone(make_bert(1).bert)

    def save_pretrained(self, path):
        raise NotImplementedError


def make_encoder(seed=0, in_root=True, **changes):
    """Return an encoder around a BERT of two layers with random weights; the same for the same seed."""
    model = make_bert(seed, **changes).bert
    return Encoder(model, in_root)


def make_pairs(count=32):
    """Return rows of two texts and the score of their similarity."""
    texts, scores = make_texts(2 * count), torch.rand(count, generator=torch.Generator().manual_seed(2)).tolist()
    return [{"one": texts[n], "other": texts[count + n], "label": scores[n]} for n in range(count)]


def tokenize_pairs(rows):
    """Collate rows of two texts into tokens under the names of their columns."""
    batch = {"label": torch.tensor([row["label"] for row in rows])}
    for column in ("one", "other"):
        tokens = make_tokenizer()([row[column] for row in rows], padding=True, return_tensors="pt")
        batch |= {f"{column}_{name}": value for name, value in tokens.items()}
    return batch


class EncoderTrainer(Trainer):
    """Trains an Encoder on pairs; saves and loads it by the encoder's own code."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, data_collator=tokenize_pairs, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        one, other = (
            model({key: inputs[f"{column}_{key}"] for key in ("input_ids", "attention_mask")})
            for column in ("one", "other")
        )
        loss = (cosine_similarity(one, other) - inputs["label"]).square().mean()
        return (loss, {}) if return_outputs else loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        with torch.no_grad():
            return self.compute_loss(model, self._prepare_inputs(inputs)).detach(), None, None

    def _save(self, output_dir=None, state_dict=None):
        self.model.save_pretrained(output_dir or self.args.output_dir)

    def _load_from_checkpoint(self, checkpoint_path):  # no model, as in sentence-transformers
        self.model.load_state_dict(Encoder.load(checkpoint_path).state_dict())

    def _load_best_model(self):
        self._load_from_checkpoint(self.state.best_model_checkpoint)
