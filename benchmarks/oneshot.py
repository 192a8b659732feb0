"""Pruning without training: the quality of every method and pattern on a real sentence encoder, and the time.

    python benchmarks/oneshot.py --model path/to/all-MiniLM-L6-v2 --text wikitext.parquet --pairs stsb.parquet
    python benchmarks/oneshot.py --bert-base --method sparsegpt --method adaprune --threads 2

The first prints Spearman's correlation for each pattern and method. It is computed between the cosine similarity of
mean-pooled embeddings and the scores of the pairs (columns sentence1, sentence2, label). "recovered" is the fraction of
the loss by magnitude that a method closes; "error" is that of the layers before reconstruction.

With `--reconstruct none block model`, each row is measured without and with reconstruction. Settings are JSON, such as
`'{"scope": "model", "steps": 600}'`. Then, unless `--pattern` chooses patterns, it prints the loss of a model with
unstructured zeros that is converted to 2:4.

The second command times a BERT-base of random weights on 128 sequences of 128 random tokens. Memory is the
peak of the process so far.
"""

import argparse
import time
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import torch
from pyarrow.parquet import read_table  # type: ignore[import-untyped]  # has no stubs
from scipy.stats import spearmanr
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerBase

from nxm_hf import prune, pruners
from nxm_hf.config.values import parse_json
from nxm_hf.text import table

PATTERNS = ("2:4", "4:8", "4:8-transposable")
HEADINGS = ("pattern", "method", "inputs", "Spearman", "recovered", "error", "layers below", "seconds", "CPU s", "GiB")


class Pairs:
    """Pairs of sentences with the scores that people gave.

    Args:
        path: A parquet file.
        tokenizer: The tokenizer of the model.
        rows: How many pairs to read; None is all of them.
    """

    def __init__(self, path: str, tokenizer: PreTrainedTokenizerBase, rows: int | None):
        columns = read_table(path).slice(0, rows).to_pydict()
        self.sentences = [*columns["sentence1"], *columns["sentence2"]]
        self.labels, self.tokenizer = columns["label"], tokenizer

    @torch.no_grad()
    def spearman(self, model: nn.Module) -> float:
        """Return Spearman's correlation between the cosine of two sentences and their score.

        Args:
            model: The sentence encoder.
        """
        model.eval()
        order = sorted(range(len(self.sentences)), key=lambda i: len(self.sentences[i]))
        vectors: dict[int, Tensor] = {}
        for begin in range(0, len(order), 64):
            here = order[begin : begin + 64]
            batch = self.tokenizer(
                [self.sentences[i] for i in here], padding=True, truncation=True, return_tensors="pt"
            )
            mask = batch["attention_mask"][..., None]
            pooled = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
            for i, vector in zip(here, pooled, strict=True):
                vectors[i] = vector
        left, right = torch.stack([vectors[i] for i in range(len(order))]).chunk(2)
        return float(spearmanr(torch.cosine_similarity(left, right), self.labels).statistic)


def prune_copy(
    model: nn.Module, pattern: str, method: str, calibration: Any, **kwargs: Any
) -> tuple[nn.Module, list[str]]:
    """Prune a copy of a model.

    Args:
        model: The model.
        pattern: The pattern.
        method: The method.
        calibration: The calibration data.
        kwargs: Further arguments of `prune`.

    Returns:
        The copy, and the columns of its row that show errors and cost.
    """
    model, began = deepcopy(model), time.process_time()
    outcome = prune(model, pattern, method, calibration, **kwargs)
    errors = [(layer.error, layer.magnitude_error) for layer in outcome.layers]
    below = sum(ours is not None and magnitude is not None and ours < magnitude for ours, magnitude in errors)
    cells = [f"{outcome.error:.4f}", f"{below} of {len(outcome.layers)}", f"{outcome.seconds:.1f}"]
    return model, [*cells, f"{time.process_time() - began:.1f}", f"{(outcome.peak_memory or 0) / 2**30:.2f}"]


def quality(arguments: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """Yield a row for each pattern and method.

    Args:
        arguments: The options of the command line.
    """
    dense = AutoModel.from_pretrained(arguments.model)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    pairs = Pairs(arguments.pairs, tokenizer, arguments.rows)
    best = pairs.spearman(dense)
    yield "dense", "-", "-", f"{best:.4f}", *["-"] * 6
    for pattern in arguments.pattern or PATTERNS:
        lost = None
        for method in ["magnitude", *(name for name in arguments.method or pruners.names() if name != "magnitude")]:
            for inputs in ("pruned",) if method in ("magnitude", "wanda") else arguments.inputs:
                kwargs = {"tokenizer": tokenizer, "inputs": inputs, "samples": arguments.samples}
                kwargs["batch_size"] = arguments.batch_size
                for fit in dict.fromkeys(["none", *arguments.reconstruct] if lost is None else arguments.reconstruct):
                    reconstruct = parse_json("reconstruct", fit)
                    model, cells = prune_copy(dense, pattern, method, arguments.text, reconstruct=reconstruct, **kwargs)
                    score = pairs.spearman(model)
                    lost = best - score if lost is None else lost  # magnitude without reconstruction comes first
                    name = method if fit == "none" else f"{method} + {fit}"
                    yield pattern, name, inputs, f"{score:.4f}", f"{1 - (best - score) / lost:.0%}", *cells
    if not arguments.pattern:
        yield from converted(dense, pairs, tokenizer, arguments)


def converted(
    dense: nn.Module, pairs: Pairs, tokenizer: PreTrainedTokenizerBase, arguments: argparse.Namespace
) -> Iterator[tuple[str, ...]]:
    """Yield rows of models with unstructured zeros, and of their conversions to 2:4.

    Args:
        dense: The dense model.
        pairs: The scored pairs.
        tokenizer: The tokenizer of the model.
        arguments: The options of the command line.
    """
    kwargs = {"tokenizer": tokenizer, "samples": arguments.samples}
    for start in ("magnitude", "alps"):
        model, cells = prune_copy(dense, "unstructured:0.5", start, arguments.text, **kwargs)
        before = pairs.spearman(model)
        yield "unstructured:0.5", start, "pruned", f"{before:.4f}", "-", *cells
        for method in arguments.method or pruners.names():
            converted_model, cells = prune_copy(model, "2:4", method, arguments.text, **kwargs)
            after = pairs.spearman(converted_model)
            yield "... to 2:4", method, "pruned", f"{after:.4f}", f"{after / before - 1:+.2%}", *cells


def speed(arguments: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """Yield a row for each pattern and method, on a BERT-base of random weights.

    Args:
        arguments: The options of the command line.
    """
    torch.manual_seed(0)
    model = BertModel(BertConfig(num_hidden_layers=arguments.blocks))
    batches = [{"input_ids": torch.randint(1000, 30000, (8, 128))} for _ in range(16)]
    for pattern in arguments.pattern or PATTERNS[:1]:
        for method in arguments.method or pruners.names():
            _, cells = prune_copy(model, pattern, method, batches)
            yield f"{pattern} (BERT-base)", method, "pruned", "-", "-", *cells


def main() -> None:
    """Print each row as soon as it is measured, and all of them in a table at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a directory with a sentence encoder and its tokenizer")
    parser.add_argument("--text", help="calibration data")
    parser.add_argument("--pairs", help="a parquet file of scored pairs")
    parser.add_argument("--rows", type=int, help="how many pairs to read (default: all)")
    parser.add_argument("--bert-base", action="store_true", help="time a BERT-base of random weights instead")
    parser.add_argument("--blocks", type=int, default=12, help="number of blocks of that BERT-base")
    parser.add_argument("--pattern", action="append")
    parser.add_argument("--method", action="append")
    parser.add_argument("--inputs", nargs="+", default=["pruned", "dense"])
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--reconstruct", nargs="+", default=["none"], help="none, block, model or settings as JSON")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for row in speed(arguments) if arguments.bert_base else quality(arguments):
        rows.append(row)
        print("  ".join(row), flush=True)
    print("\n" + table(HEADINGS, rows))


if __name__ == "__main__":
    main()
