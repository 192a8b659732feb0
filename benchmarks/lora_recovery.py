"""A sentence encoder that alps made sparse, fine-tuned with an adapter and in full: correlation on scored pairs.

    python benchmarks/lora_recovery.py --model path/to/all-MiniLM-L6-v2 --pairs path/to/stsb --pattern 1:4 --seed 0

The folder of pairs holds train.parquet and validation.parquet, with the columns sentence1, sentence2 and label from 0
to 5. The loss is the squared difference of the label and the cosine of two mean embeddings. Each score is that of the
model in memory: of the base with its adapter, or of the merged model. `trained` counts the parameters that change, and
`cpu` is the processor time of the training. The learning rates were set once and not tuned.
"""

import argparse
import copy
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from scipy.stats import spearmanr
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, TrainingArguments

from nxm_hf import NxMTrainer, mask_adapter, prune, verify
from nxm_hf.adapters.merging import merge
from nxm_hf.text import table

HEADINGS = ("seed", "model", "Spearman", "sparse", "trained", "cpu")
VARIANTS = ("none", "full", "lora", "masked")
Pair = dict[str, Any]  # the two sentences as "texts", and a score from 0 to 1


class PairTrainer(NxMTrainer):
    """Train embeddings on scored pairs."""

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Return the squared error of the cosines. The batch holds all first sentences, then all second ones."""
        scores = inputs.pop("scores")
        return nn.functional.mse_loss(cosines(model, inputs), scores)


def cosines(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Return the cosine of the two embeddings of each pair.

    Args:
        model: The encoder.
        inputs: The tokens of all first sentences, then of all second ones.
    """
    mask = inputs["attention_mask"].unsqueeze(-1)
    states = model(**inputs).last_hidden_state
    one, other = ((states * mask).sum(1) / mask.sum(1)).chunk(2)
    return nn.functional.cosine_similarity(one, other)


class Comparison:
    """Train the variants of one seed, and print a row for each.

    Args:
        arguments: The options of the command line.
        seed: The seed of the adapter and of the order of the rows.
    """

    def __init__(self, arguments: argparse.Namespace, seed: int):
        self.arguments, self.seed = arguments, seed
        self.tokenizer = AutoTokenizer.from_pretrained(arguments.model)
        self.rows: list[tuple[str, ...]] = []
        self.train, validation = (self._read(split) for split in ("train", "validation"))
        self.validation = validation[: arguments.validation_rows]
        self.texts = [text for pair in self.train for text in pair["texts"]]

    def _read(self, split: str) -> list[Pair]:
        pairs = Dataset.from_parquet(str(self.arguments.pairs / f"{split}.parquet"))
        rows = zip(pairs["sentence1"], pairs["sentence2"], pairs["label"], strict=True)
        return [{"texts": (one, other), "score": float(label) / 5} for one, other, label in rows]

    def run(self) -> None:
        """Train and score every variant."""
        model = AutoModel.from_pretrained(self.arguments.model)
        options = {"calibration": self.texts, "tokenizer": self.tokenizer, "samples": self.arguments.samples}
        if "none" in self.arguments.train:
            self._score("dense, not trained", model)
        prune(model, self.arguments.pattern, "alps", **options)
        if "none" in self.arguments.train:
            self._score("alps, not trained", model)
        if "full" in self.arguments.train:
            self._train("masked, in full", copy.deepcopy(model), self.arguments.learning_rate)
        if "lora" in self.arguments.train:
            self._run_lora(model, options)
        if "masked" in self.arguments.train:
            adapted = mask_adapter(self._adapted(model))
            masked = self._train("masked LoRA", adapted, self.arguments.lora_learning_rate)
            self._merge("masked LoRA, merged", masked)

    def _run_lora(self, model: nn.Module, options: dict[str, Any]) -> None:
        lora = self._train("LoRA, beside the base", self._adapted(model), self.arguments.lora_learning_rate)
        self._merge("LoRA, merged and masked", copy.deepcopy(lora))
        self._merge("LoRA, merged and pruned by sparsegpt", lora, method="sparsegpt", **options)

    def _adapted(self, model: nn.Module) -> nn.Module:
        """Return the sparse model, frozen, with LoRA, biases and norms to train."""
        torch.manual_seed(self.seed)
        config = LoraConfig(
            task_type="FEATURE_EXTRACTION",
            r=self.arguments.rank,
            lora_alpha=self.arguments.rank,
            target_modules=["query", "key", "value", "output.dense", "intermediate.dense"],
            bias="all",
            modules_to_save=["LayerNorm"],
        )
        base: Any = copy.deepcopy(model)
        return get_peft_model(base, config)

    def _train(self, name: str, model: Any, rate: float) -> nn.Module:
        args = TrainingArguments(
            output_dir=tempfile.mkdtemp(),
            max_steps=self.arguments.steps,
            per_device_train_batch_size=16,
            learning_rate=rate,
            warmup_steps=0.1,
            save_strategy="no",
            report_to=[],
            seed=self.seed,
            use_cpu=True,
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        began, rows = time.process_time(), self.train
        PairTrainer(model, args, self._collate, train_dataset=rows).train()
        self._score(name, model, _trained(model), f"{time.process_time() - began:.0f} s")
        return model

    def _collate(self, pairs: list[Pair]) -> dict[str, Tensor]:
        texts = [pair["texts"][side] for side in (0, 1) for pair in pairs]
        tokens = self.tokenizer(texts, truncation=True, max_length=128, padding=True, return_tensors="pt")
        return {**tokens, "scores": torch.tensor([pair["score"] for pair in pairs])}

    def _merge(self, name: str, model: nn.Module, **options: Any) -> None:
        result = merge(model, **options)
        print(result.verdict, flush=True)
        self._score(name, result.model)

    @torch.no_grad()
    def _score(self, name: str, model: nn.Module, trained: str = "", cpu: str = "") -> None:
        model.eval()
        found: list[float] = []
        for begin in range(0, len(self.validation), 50):
            batch = self._collate(self.validation[begin : begin + 50])
            del batch["scores"]
            found += cosines(model, batch).tolist()
        score = spearmanr(found, [pair["score"] for pair in self.validation]).statistic
        holds = "yes" if verify(model, self.arguments.pattern).ok else "no"
        self.rows.append((str(self.seed), name, f"{score:.4f}", holds, trained, cpu))
        print("  ".join(self.rows[-1]), flush=True)


def _trained(model: nn.Module) -> str:
    """Return the number of entries that training changes: those of parameters that train, without pruned ones."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return f"{sum(int(parameter.count_nonzero()) for parameter in trained) / 1e6:.2f} M"


def main() -> None:
    """Print each row as soon as it is measured, and all of them in a table at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a directory of a BERT-like encoder")
    parser.add_argument("--pairs", required=True, type=Path, help="a folder with train.parquet and validation.parquet")
    parser.add_argument("--pattern", default="2:4")
    parser.add_argument("--steps", type=int, default=60, help="steps of 16 pairs (default: %(default)s)")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=5e-5, help="of training in full (default: %(default)s)")
    parser.add_argument("--lora-learning-rate", type=float, default=1e-3, help="of an adapter (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=512, help="sentences that are read (default: %(default)s)")
    parser.add_argument("--validation-rows", type=int, default=1500)
    parser.add_argument(
        "--train", nargs="+", choices=VARIANTS, default=VARIANTS, help="what to measure (default: all of it)"
    )
    parser.add_argument("--seed", type=int, action="append", required=True, help="repeat it for several")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows: list[tuple[str, ...]] = []
    for seed in arguments.seed:
        comparison = Comparison(arguments, seed)
        comparison.run()
        rows += comparison.rows
    print("\n" + table(HEADINGS, rows))


if __name__ == "__main__":
    main()
