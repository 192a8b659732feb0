"""What pruning without training costs and keeps: every method and pattern on a real sentence encoder, and the time.

    python benchmarks/oneshot.py --model path/to/all-MiniLM-L6-v2 --text wikitext.parquet --pairs stsb.parquet
    python benchmarks/oneshot.py --bert-base --method sparsegpt --method adaprune --threads 2

The first prints, for each pattern and method, Spearman's correlation between the cosine similarity of mean-pooled
embeddings and the scores of the pairs (columns sentence1, sentence2, label), what share of that which magnitude loses
comes back, and the errors of the layers; then what a model of unstructured zeros loses on its way to 2:4. The second
times a BERT-base of random weights on 128 sequences of 128 random tokens. Memory is the peak of the process so far.
"""

import argparse
import time
from collections.abc import Iterator
from copy import deepcopy

import torch
from pyarrow.parquet import read_table
from scipy.stats import spearmanr
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerBase

from nxm_hf import prune, pruners
from nxm_hf.text import table

PATTERNS = ("2:4", "4:8", "4:8-transposable")
HEADINGS = ("pattern", "method", "inputs", "Spearman", "recovered", "error", "layers below", "seconds", "CPU s", "GiB")


class Pairs:
    """Pairs of sentences that people have scored."""

    def __init__(self, path: str, tokenizer: PreTrainedTokenizerBase, rows: int | None):
        columns = read_table(path).slice(0, rows).to_pydict()
        self.sentences = [*columns["sentence1"], *columns["sentence2"]]
        self.labels, self.tokenizer = columns["label"], tokenizer

    @torch.no_grad()
    def spearman(self, model: nn.Module) -> float:
        """How well the cosine of two sentences orders the pairs as people do."""
        model.eval()
        order = sorted(range(len(self.sentences)), key=lambda i: len(self.sentences[i]))
        vectors: list[Tensor | None] = [None] * len(order)
        for begin in range(0, len(order), 64):
            here = order[begin : begin + 64]
            batch = self.tokenizer(
                [self.sentences[i] for i in here], padding=True, truncation=True, return_tensors="pt"
            )
            mask = batch["attention_mask"][..., None]
            pooled = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
            for i, vector in zip(here, pooled, strict=True):
                vectors[i] = vector
        left, right = torch.stack(vectors).chunk(2)
        return float(spearmanr(torch.cosine_similarity(left, right), self.labels).statistic)


def pruned(model: nn.Module, pattern: str, method: str, calibration, **words) -> tuple[nn.Module, list[str]]:
    """A pruned copy, and the columns of its row that say what it cost."""
    model, began = deepcopy(model), time.process_time()
    outcome = prune(model, pattern, method, calibration, **words)
    below = sum(x.error < x.magnitude_error for x in outcome.layers)
    cells = [f"{outcome.error:.4f}", f"{below} of {len(outcome.layers)}", f"{outcome.seconds:.1f}"]
    return model, [*cells, f"{time.process_time() - began:.1f}", f"{outcome.peak_memory / 2**30:.2f}"]


def quality(arguments: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """A row for each pattern and method."""
    dense = AutoModel.from_pretrained(arguments.model)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    pairs = Pairs(arguments.pairs, tokenizer, arguments.rows)
    best = pairs.spearman(dense)
    yield "dense", "-", "-", f"{best:.4f}", *["-"] * 6
    for pattern in arguments.pattern or PATTERNS:
        lost = None
        for method in ["magnitude", *(name for name in arguments.method or pruners.names() if name != "magnitude")]:
            for inputs in ("pruned",) if method in ("magnitude", "wanda") else arguments.inputs:
                words = dict(tokenizer=tokenizer, inputs=inputs, samples=arguments.samples)
                model, cells = pruned(dense, pattern, method, arguments.text, **words)
                found = pairs.spearman(model)
                lost = best - found if lost is None else lost
                yield pattern, method, inputs, f"{found:.4f}", f"{1 - (best - found) / lost:.0%}", *cells
    yield from converted(dense, pairs, tokenizer, arguments)


def converted(dense: nn.Module, pairs: Pairs, tokenizer, arguments: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """What a model of unstructured zeros loses on its way to 2:4."""
    words = dict(tokenizer=tokenizer, samples=arguments.samples)
    for start in ("magnitude", "alps"):
        model, cells = pruned(dense, "unstructured:0.5", start, arguments.text, **words)
        before = pairs.spearman(model)
        yield "unstructured:0.5", start, "pruned", f"{before:.4f}", "-", *cells
        for method in arguments.method or pruners.names():
            after, cells = pruned(model, "2:4", method, arguments.text, **words)
            found = pairs.spearman(after)
            yield "... to 2:4", method, "pruned", f"{found:.4f}", f"{found / before - 1:+.2%}", *cells


def speed(arguments: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """A row for each pattern and method, on a BERT-base of random weights."""
    torch.manual_seed(0)
    model = BertModel(BertConfig(num_hidden_layers=arguments.blocks))
    batches = [{"input_ids": torch.randint(1000, 30000, (8, 128))} for _ in range(16)]
    for pattern in arguments.pattern or PATTERNS[:1]:
        for method in arguments.method or pruners.names():
            yield f"{pattern} (BERT-base)", method, "pruned", "-", "-", *pruned(model, pattern, method, batches)[1]


def main() -> None:
    """Run what is asked for; each row is printed when it is there, and all in a table at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a directory with a sentence encoder and its tokenizer")
    parser.add_argument("--text", help="calibration data")
    parser.add_argument("--pairs", help="a parquet file of scored pairs")
    parser.add_argument("--rows", type=int, help="read only so many pairs")
    parser.add_argument("--bert-base", action="store_true", help="time a BERT-base of random weights instead")
    parser.add_argument("--blocks", type=int, default=12, help="how many of the blocks of that BERT-base")
    parser.add_argument("--pattern", action="append")
    parser.add_argument("--method", action="append")
    parser.add_argument("--inputs", nargs="+", default=["pruned", "dense"])
    parser.add_argument("--samples", type=int, default=128)
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
