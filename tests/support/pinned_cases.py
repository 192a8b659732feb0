"""List the pinned cases without training, and hold what all share: hashes, and tiny models with rows for them."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from nxm_hf import NxMConfig, analysis, permute, prune, recipes, verify
from nxm_hf.patterns import parse
from nxm_hf.solvers import solve, solve_many

Parts = Iterator[tuple[str, Any]]
Cases = Iterator[tuple[str, Callable[[], Parts]]]
VOCABULARY = 50
SHAPE = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=VOCABULARY)
TOKENS = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
ROLES = {"ffn": "2:4", "default": "4:8"}
PATTERNS = {
    **{text: text for text in ("2:4", "1:4", "4:8", "2:4-transposable", "8:16-transposable")},
    **{text: text for text in ("unstructured:0.5", "block:4:0.5", "block:4x4:0.5", "dense")},
    "roles": ROLES,
}
MORE_PATTERNS = (
    "1:2",
    "3:4",
    "2:8",
    "8:16",
    "16:32",
    "3:7",
    "1:4-transposable",
    "4:8-transposable",
    "unstructured:0.1",
)


# -- hashes ------------------------------------------------------------------------------------------------------------


def digest(value: Any) -> str:
    """Hash a value: tensors by type, shape and bytes, containers by what is in them, all else by its text."""
    sha = hashlib.sha256()
    _feed(sha, value)
    return sha.hexdigest()[:16]


def _feed(sha: Any, value: Any) -> None:
    """Add a value to a hash."""
    if isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous()
        sha.update(f"{flat.dtype} {tuple(flat.shape)};".encode())
        sha.update(flat.reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            sha.update(f"{key}=".encode())
            _feed(sha, value[key])
    elif isinstance(value, (list, tuple)):
        sha.update(f"[{len(value)}]".encode())
        for each in value:
            _feed(sha, each)
    else:
        sha.update(f"{float(value).hex() if isinstance(value, float) else value};".encode())


def state_of(engine: Any) -> dict[str, Any]:
    """Return the state of an engine, with the parts of its header that no refactoring may change."""
    state = dict(engine.state_dict())
    header = json.loads(bytes(state.pop("header").tolist())) if "header" in state else {}
    kept = {key: header[key] for key in ("step", "last", "total_steps", "seed", "layers") if key in header}
    asked = config_words(header.get("config", {}))
    asked = {key: value for key, value in asked.items() if key not in ("layers", "density")}  # recorded, not asked
    return {**state, "header": {**kept, **asked}}


def config_words(words: dict[str, Any]) -> dict[str, Any]:
    """Return what a written config says of the sparsity itself."""
    names = ("recipe", "pattern", "settings", "warmup", "settle", "layers", "density")
    return {name: words[name] for name in names if name in words}


def timeless(words: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what says how long something took."""
    return {key: value for key, value in words.items() if not re.search("runtime|per_second", key)}


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Return all weights of a model, by name."""
    return dict(model.state_dict())


# -- models and rows ---------------------------------------------------------------------------------------------------


def bert(seed: int = 0, **changes: Any) -> transformers.PreTrainedModel:
    """Make a BERT of two layers with random weights; it is the same for the same seed."""
    torch.manual_seed(seed)
    words = dict(SHAPE, max_position_embeddings=32, problem_type="single_label_classification")
    config = transformers.BertConfig(**{**words, **changes})
    return transformers.BertForSequenceClassification(config)


def wide() -> transformers.PreTrainedModel:
    """Make a BERT of one layer whose matrices are large enough for compiled kernels."""
    return bert(hidden_size=256, num_hidden_layers=1, intermediate_size=512)


def language_model(name: str) -> transformers.PreTrainedModel:
    """Make a small causal language model of another family, or a BERT whose layers share their weights."""
    torch.manual_seed(0)
    if name == "gpt2":
        words = dict(n_embd=32, n_layer=2, n_head=2, vocab_size=VOCABULARY, n_positions=16)
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(**words, **TOKENS))
    if name == "llama":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE, **TOKENS))
    return transformers.AlbertForMaskedLM(transformers.AlbertConfig(**SHAPE, embedding_size=16))


def make_rows(count: int = 32, length: int = 8) -> list[dict[str, Tensor]]:
    """Make rows whose label is the parity of their first token."""
    ids = torch.randint(3, VOCABULARY, (count, length), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row[0] % 2} for row in ids]


def make_batches(count: int, labels: str | None = None, rows: int = 8) -> list[dict[str, Tensor]]:
    """Make batches with padding; labels are those of a "class", of "tokens", or none."""
    chance, batches = torch.Generator().manual_seed(2), []
    for _ in range(count):
        ids = torch.randint(3, VOCABULARY, (rows, 8), generator=chance)
        mask = torch.ones_like(ids)
        mask[1, 5:] = 0
        batch = {"input_ids": ids, "attention_mask": mask}
        if labels:
            batch["labels"] = ids[:, 0] % 2 if labels == "class" else ids
        batches.append(batch)
    return batches


def short(recipe: str, pattern: str | dict = "2:4", **words: Any) -> dict[str, Any]:
    """Return the words of a config whose events happen within a dozen steps."""
    wanted = {"steps": 3, "every": 3, "period": 0.25}
    settings = {name: value for name, value in wanted.items() if name in recipes.settings(recipe)}
    return dict(recipe=recipe, pattern=pattern, settings=settings, **words)


# -- patterns and solvers ----------------------------------------------------------------------------------------------


def _matrices(rows: int, columns: int) -> Iterator[tuple[str, Tensor]]:
    """Make matrices of two types, one with many ties, and one that is not contiguous."""
    chance = torch.Generator().manual_seed(5)
    weight = torch.randn(rows, columns, generator=chance)
    yield "fp32", weight
    yield "bf16", weight.bfloat16()
    yield "ties", torch.randint(-3, 4, (rows, columns), generator=chance).float()
    yield "strided", torch.randn(columns, rows, generator=chance).T


def pattern_case(text: str, rows: int, columns: int) -> Parts:
    """Hash masks, projections and violations, and the masks of a list."""
    pattern = parse(text)
    matrices = dict(_matrices(rows, columns))
    for name, weight in matrices.items():
        mask, projected = pattern.mask(weight.abs()), pattern.project(weight)
        counts = [pattern.violations(each) for each in (weight, mask, projected)]
        yield name, [mask, projected, counts, solve(weight.abs(), pattern)]
    yield "many", solve_many([weight.abs() for weight in matrices.values()], pattern)


def patterns() -> Cases:
    """List the patterns, on small matrices and on some that compiled kernels take."""
    for text in (*(text for text in PATTERNS if text != "roles"), *MORE_PATTERNS):
        columns = (56, 448) if text == "3:7" else (64, 512)
        yield f"{text}/small", partial(pattern_case, text, 32, columns[0])
        yield f"{text}/large", partial(pattern_case, text, 160, columns[1])


# -- without training --------------------------------------------------------------------------------------------------


def pruning(make: Callable, pattern: str | dict, method: str, **words: Any) -> Parts:
    """Prune without training; of the report, leave out time and memory."""
    model = make()
    batches = None if method == "magnitude" and "inputs" not in words else make_batches(4)
    report = str(prune(model, pattern, method, batches, **words))
    yield "weights", weights(model)
    yield "report", re.sub(r", (time|peak memory) [\d.]+ (s|GiB)", "", report)
    yield "verified", str(verify(model))


MORE_PRUNINGS: dict[str, dict[str, Any]] = {
    "sparsegpt-keep": dict(method="sparsegpt", damping=0.01, bias="keep"),
    "sparsegpt-joint": dict(method="sparsegpt", bias="joint"),
    "adaprune-wanda": dict(method="adaprune", scores="wanda"),
    "adaprune-sparsegpt": dict(method="adaprune", scores="sparsegpt", bias="joint"),
    "adaprune-adam": dict(method="adaprune", solver="adam", steps=20, batch=16),
    "alps-joint": dict(method="alps", bias="joint", rho=0.3, steps=30),
    "magnitude-seen": dict(method="magnitude", inputs="pruned", exclude=["query"]),
}


def prunings() -> Cases:
    """List the methods of `prune` by pattern, by what blocks see, and by family."""
    for method in ("magnitude", "wanda", "sparsegpt", "adaprune", "alps"):
        for name in ("2:4", "4:8", "unstructured:0.5", "2:4-transposable", "block:4x4:0.5", "roles"):
            yield f"{method}/{name}", partial(pruning, bert, PATTERNS[name], method)
        yield f"{method}/dense-inputs", partial(pruning, bert, "2:4", method, inputs="dense")
        yield f"{method}/gpt2", partial(pruning, partial(language_model, "gpt2"), "2:4", method)
        yield f"{method}/wide", partial(pruning, wide, "2:4", method)
    for name, words in MORE_PRUNINGS.items():
        yield f"more/{name}", partial(pruning, bert, "2:4", **words)


def permuting(make: Callable, pattern: str | dict) -> Parts:
    """Permute a model, and hash what it holds then."""
    model = make()
    report = permute(model, pattern, rounds=3)
    yield "weights", weights(model)
    yield "report", str(report)


def permutations() -> Cases:
    """List the permutations."""
    for name in ("2:4", "1:4", "4:8", "roles"):
        yield f"bert/{name}", partial(permuting, bert, PATTERNS[name])
    for name in ("gpt2", "llama"):
        yield f"{name}/2:4", partial(permuting, partial(language_model, name), "2:4")


def flops(make: Callable, **words: Any) -> Parts:
    """Account for a training by each recipe."""
    for recipe in recipes.names():
        yield recipe, str(analysis.training_flops(make(), NxMConfig(**short(recipe)), 100, **words))
    for name, pattern in PATTERNS.items():
        yield name, str(analysis.training_flops(make(), NxMConfig(**short("admm", pattern)), 100, **words))


def numbers() -> Parts:
    """Hash what the other functions of the analysis say."""
    chance = torch.Generator().manual_seed(11)
    one, other = (torch.rand(64, 64, generator=chance) > 0.5 for _ in range(2))
    yield "movement", [analysis.mask_similarity(one, other), analysis.flip_rate(one, other)]
    walks = torch.randn(40, 30, 20, generator=chance).cumsum(0)
    learnt = analysis.learning_correlation(walks, mask=one[:30, :20])
    yield "correlation", [learnt.delta, learnt.median, learnt.kept, learnt.pruned, learnt.censored]
    yield "correlation-lags", analysis.learning_correlation(list(walks), lags=[1, 2, 5, 9]).delta
    for text in (*(text for text in PATTERNS if text != "roles"), *MORE_PATTERNS):
        yield f"diversity/{text}", analysis.mask_diversity(text, 7 * 4096, exact="8:16-t" not in text)


def verifying() -> Parts:
    """Hash what `verify` says of dense models, where promises are broken."""
    for text in (text for text in PATTERNS if text != "roles"):
        yield text, str(verify(bert(), text))


def looking() -> Cases:
    """List what looks at models and at trainings that are not run."""
    yield "flops", partial(flops, bert)
    yield "flops-sparse", partial(flops, bert, sparse_dx=True, sparse_dw=True, tokens=16, done=50)
    yield "numbers", numbers
    yield "verify", verifying


SECTIONS: dict[str, Callable[[], Cases]] = {
    "patterns": patterns,
    "prune": prunings,
    "permute": permutations,
    "look": looking,
}
