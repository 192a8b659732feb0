"""List the pinned trainings: plain loops, NxMTrainer and NxMCallback."""

import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from pinned_cases import (
    PATTERNS,
    ROLES,
    Cases,
    Parts,
    bert,
    config_words,
    digest,
    language_model,
    make_batches,
    make_rows,
    short,
    state_of,
    timeless,
    weights,
    wide,
)
from safetensors.torch import load_file

import nxm_hf
from nxm_hf import NxMCallback, NxMConfig, NxMTrainer, attach, prune, recipes, rewind, verify

STEPS = 12
VARIANTS: dict[str, dict[str, Any]] = {
    "admm-auto": dict(recipe="admm"),
    "admm-auto-warmup": dict(recipe="admm", settings={"steps": 2}, warmup=0.25),
    "admm-rho": dict(recipe="admm", settings={"rho": 0.02, "steps": 3}),
    "admm-rho-settle": dict(recipe="admm", settings={"rho": 0.02, "steps": 3}, settle=0.25),
    "admm-rho-fisher": dict(recipe="admm", settings={"rho": 0.02, "steps": 3, "scores": "fisher"}),
    "admm-magnitude": dict(recipe="admm", settings={"steps": 3, "scores": "magnitude"}),
    "admm-decoupled": dict(recipe="admm", settings={"penalty": "decoupled", "steps": 3, "contraction": 0.5}),
    "admm-start-a": dict(recipe="admm", settings={"start": "A", "steps": 3}),
    "admm-start-b": dict(recipe="admm", settings={"start": "B", "steps": 3}),
    "admm-no-dual": dict(recipe="admm", settings={"dual": False, "steps": 3}),
    "admm-epoch": dict(recipe="admm", settings={"steps": "epoch"}),
    "asp-fisher": dict(recipe="asp", settings={"scores": "fisher"}, warmup=0.5),
    "ste-scaled": dict(recipe="ste", settings={"grad_scale": 0.5, "refresh": 3}),
    "sr-ste-strong": dict(recipe="sr-ste", settings={"decay": 0.05, "refresh": 2}),
    "sr-ste-scaled": dict(recipe="sr-ste", settings={"decay": 0.01, "grad_scale": 0.5}),
    "fix-early": dict(recipe="fix", settle=0.75),
    "reset-first": dict(recipe="reset", settings={"every": 3, "reset_moments": "first"}),
    "reset-both": dict(recipe="reset", settings={"every": 4, "reset_moments": "both"}),
    "regularize-strong": dict(recipe="regularize", settings={"shrink": 0.1, "refresh": 2}),
    "mask-decay-exponential": dict(recipe="mask-decay", settings={"schedule": "exponential", "grad": "ste"}),
    "mask-decay-rate": dict(recipe="mask-decay", settings={"schedule": "exponential", "rate": 0.3}),
    "mask-decay-linear-rate": dict(recipe="mask-decay", settings={"rate": 0.2, "refresh": 2}, warmup=0.1, settle=0.1),
    "structure-geometric": dict(recipe="structure-decay", pattern="1:4", settings={"schedule": "geometric"}),
    "structure-stepwise": dict(recipe="structure-decay", pattern="1:8"),
    "structure-frames": dict(recipe="structure-decay", settings={"frames": ["7:8", "3:4", "2:4"]}),
    "set-linear": dict(recipe="set", settings={"every": 3, "fraction": 0.5, "schedule": "linear"}),
    "set-unstructured": dict(recipe="set", pattern="unstructured:0.5", settings={"every": 2}),
    "rigl-linear": dict(recipe="rigl", settings={"every": 3, "fraction": 0.5, "schedule": "linear"}),
    "rigl-transposable": dict(recipe="rigl", pattern="2:4-transposable", settings={"every": 3}),
    "gradual-start": dict(recipe="gradual", pattern="4:8", settings={"every": 2, "start_density": 0.75}),
    "gradual-unstructured": dict(recipe="gradual", pattern="unstructured:0.3", settings={"every": 2}),
    "include": dict(recipe="ste", include=["ffn"]),
    "exclude": dict(recipe="admm", settings={"steps": 3}, exclude=["query", "re:.*layer.1.*"]),
    "skip": dict(recipe="sr-ste", pattern="32:64", on_indivisible="skip"),
    "two-windows": dict(recipe="sr-ste", pattern=ROLES, warmup=0.25, settle=0.25),
}
TRAININGS: dict[str, dict[str, Any]] = {
    "asp-alps": dict(sparsity=dict(recipe="asp", settings={"scores": "alps"})),
    "asp-sparsegpt": dict(sparsity=dict(recipe="asp", settings={"scores": "sparsegpt"}, warmup=0.5)),
    "asp-wanda": dict(sparsity=dict(recipe="asp", settings={"scores": "wanda"})),
    "asp-fisher": dict(sparsity=dict(recipe="asp", settings={"scores": "fisher"}, warmup=0.5)),
    "admm-default": dict(sparsity="admm"),
    "admm-rho": dict(sparsity=dict(recipe="admm", settings={"rho": 0.02, "steps": 2})),
    "admm-adaprune": dict(sparsity=dict(recipe="admm", settings={"scores": "adaprune"}, settle=0.25)),
    "roles": dict(sparsity=dict(recipe="sr-ste", pattern=ROLES, warmup=0.25)),
    "best-admm": dict(sparsity="admm", load_best_model_at_end=True, eval_strategy="steps", eval_steps=4),
    "best-ste": dict(sparsity="ste", load_best_model_at_end=True, eval_strategy="steps", eval_steps=4),
    "accumulated-ste": dict(sparsity="ste", gradient_accumulation_steps=2),
    "accumulated-dense": dict(sparsity="dense", gradient_accumulation_steps=2),
    "sgd-admm": dict(sparsity="admm", optim="sgd", learning_rate=0.1),
    "teacher-ste": dict(sparsity="ste", teacher=1),
    "teacher-admm": dict(sparsity="admm", teacher=1, distillation=dict(temperature=3.0, weight=0.7, hidden=0.1)),
    "teacher-asp": dict(sparsity="asp", teacher=1, distillation=dict(attention=0.5), gradient_accumulation_steps=2),
}


# -- plain loops -------------------------------------------------------------------------------------------------------

OPTIMIZERS: dict[str, Callable] = {
    "adamw": partial(torch.optim.AdamW, lr=5e-3, weight_decay=0.1),
    "momentum": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-3),
}


def loop(make: Callable, words: dict[str, Any], optimizer: str = "adamw", steps: int = STEPS, labels="class") -> Parts:
    """Train in a plain loop, and hash the two views, the state and the metrics as they change."""
    model = make().train()
    stepper = OPTIMIZERS[optimizer](model.parameters())
    torch.manual_seed(7)
    engine = attach(model, stepper, NxMConfig(**words), total_steps=steps, steps_per_epoch=4, seed=3)
    seen = {"weights": [digest(weights(model))], "state": [digest(state_of(engine))], "metrics": [], "deployed": []}
    for step, batch in enumerate(make_batches(steps, labels), start=1):
        loss = model(**batch).loss
        loss.backward()
        stepper.step()
        stepper.zero_grad()
        seen["metrics"].append([loss.item(), engine.metrics()])
        if step % 4 == 2:
            with engine.deployed():
                seen["deployed"].append(digest(weights(model)))
        seen["weights"].append(digest(weights(model)))
        seen["state"].append(digest(state_of(engine)))
    yield from seen.items()
    yield "moments", stepper.state_dict()["state"]
    engine.finish()
    yield "finished", weights(model)
    yield "verified", str(verify(model))  # of a dense model an error, which is recorded as such


def loops() -> Cases:
    """List the plain loops: every recipe, every pattern, and more settings of some."""
    for recipe in recipes.names():
        for optimizer in OPTIMIZERS:
            yield f"{recipe}/{optimizer}", partial(loop, bert, short(recipe), optimizer)
        yield f"{recipe}/windows", partial(loop, bert, short(recipe, warmup=0.25, settle=0.25))
    for name, words in VARIANTS.items():
        yield f"variant-{name}", partial(loop, bert, words)
    yield "variant-admm-rho/momentum", partial(loop, bert, VARIANTS["admm-rho"], "momentum")
    yield "variant-ste-scaled/momentum", partial(loop, bert, VARIANTS["ste-scaled"], "momentum")
    for name, pattern in PATTERNS.items():
        for recipe in ("asp", "ste", "admm"):
            yield f"pattern-{name}/{recipe}", partial(loop, bert, short(recipe, pattern))
    for name in ("gpt2", "llama", "albert"):
        for recipe in ("sr-ste", "admm", "rigl"):
            case = partial(loop, partial(language_model, name), short(recipe), steps=6, labels="tokens")
            yield f"family-{name}/{recipe}", case


def large() -> Cases:
    """List the plain loops on matrices that compiled kernels take."""
    for recipe in recipes.names():
        yield f"{recipe}", partial(loop, wide, short(recipe), steps=6)
    for pattern in ("4:8", "2:4-transposable", "unstructured:0.5"):
        for recipe in ("ste", "admm"):
            yield f"{pattern}/{recipe}", partial(loop, wide, short(recipe, pattern), steps=4)


# -- trainers ----------------------------------------------------------------------------------------------------------


def arguments(folder: Path, **changes: Any) -> transformers.TrainingArguments:
    """Make the arguments of a training of eight steps."""
    words = dict(
        output_dir=str(folder),
        max_steps=8,
        per_device_train_batch_size=4,
        learning_rate=2e-3,
        weight_decay=0.01,
        save_steps=4,
        logging_steps=2,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        seed=0,
    )
    return transformers.TrainingArguments(**{**words, **changes})


def make_trainer(kind: Callable, folder: Path, words: dict[str, Any]) -> transformers.Trainer:
    """Make a Trainer; of its words, those that TrainingArguments does not know are the Trainer's own."""
    words = dict(words)
    own = {name: words.pop(name) for name in ("sparsity", "teacher", "distillation") if name in words}
    if isinstance(own.get("sparsity"), dict):
        own["sparsity"] = NxMConfig(**own["sparsity"])
    eager = {"attn_implementation": "eager"}
    if "teacher" in own:
        own["teacher"] = bert(own["teacher"], **eager)
    if kind is transformers.Trainer:
        own = {"callbacks": [NxMCallback(own["sparsity"])]}
    model, rows = bert(**(eager if "teacher" in own else {})), make_rows()
    return kind(model=model, args=arguments(folder, **words), train_dataset=rows, eval_dataset=rows[:12], **own)


def training(kind: Callable, words: dict[str, Any]) -> Parts:
    """Train, save, evaluate and resume; hash what each leaves behind."""
    with tempfile.TemporaryDirectory() as place:
        first, end = Path(place, "run"), Path(place, "end")
        trainer = make_trainer(kind, first, words)
        trainer.train()
        yield "trained", weights(trainer.model)
        yield "log", [timeless(record) for record in trainer.state.log_history]
        for path in sorted(first.glob("checkpoint-*/*.safetensors")):
            yield f"{path.parent.name}/{path.name}", load_file(path)
        trainer.save_model(str(end))
        yield "saved", load_file(end / "model.safetensors")
        if (end / "nxm_config.json").is_file():
            yield "config", config_words(json.loads((end / "nxm_config.json").read_text()))
            yield "verified", str(verify(end))
        yield "evaluated", timeless(trainer.evaluate())
        yield "predicted", torch.from_numpy(trainer.predict(make_rows(12)).predictions)
        again = make_trainer(kind, first, words)
        again.train(resume_from_checkpoint=str(first / "checkpoint-4"))
        yield "resumed", weights(again.model)


def kept_mask() -> Parts:
    """Train a model that is sparse already, without saying how."""
    with tempfile.TemporaryDirectory() as place:
        model = bert()
        prune(model, "2:4")
        words = dict(train_dataset=make_rows(), args=arguments(Path(place), save_strategy="no"))
        trainer = NxMTrainer(model=model, **words)
        trainer.train()
        yield "trained", weights(model)


def analysed(recipe: str) -> Parts:
    """Train with an AnalysisCallback, and hash what it writes but for the versions."""
    with tempfile.TemporaryDirectory() as place:
        trainer = make_trainer(NxMTrainer, Path(place), dict(sparsity=short(recipe)))
        trainer.add_callback(nxm_hf.AnalysisCallback())
        trainer.train()
        words = json.loads(Path(place, "nxm_analysis.json").read_text())
        yield "file", {key: value for key, value in words.items() if key not in ("environment", "format")}


def trainers() -> Cases:
    """List the trainings by NxMTrainer, and by a plain Trainer with NxMCallback."""
    for recipe in recipes.names():
        yield f"recipe-{recipe}", partial(training, NxMTrainer, dict(sparsity=short(recipe)))
    for name, words in TRAININGS.items():
        yield name, partial(training, NxMTrainer, words)
    for recipe in ("asp", "sr-ste", "admm", "rigl"):
        yield f"callback-{recipe}", partial(training, transformers.Trainer, dict(sparsity=NxMConfig(**short(recipe))))
    for recipe in ("ste", "admm"):
        yield f"analysis-{recipe}", partial(analysed, recipe)
    yield "kept-mask", kept_mask


def rewinding(sparsity: dict[str, Any], pattern: str | None) -> Parts:
    """Train, and rewind the end of it to its middle."""
    with tempfile.TemporaryDirectory() as place:
        run, ticket = Path(place, "run"), Path(place, "ticket")
        make_trainer(NxMTrainer, run, dict(sparsity=sparsity)).train()
        report = rewind(run / "checkpoint-8", run / "checkpoint-4", ticket, pattern)
        yield "report", str(report)
        yield "weights", load_file(ticket / "model.safetensors")


def rewindings() -> Cases:
    """List the lottery tickets: of a dense training, and of a sparse one."""
    yield "dense", partial(rewinding, dict(recipe="dense"), "2:4")
    yield "admm", partial(rewinding, short("admm"), None)


SECTIONS: dict[str, Callable[[], Cases]] = {
    "loops": loops,
    "large": large,
    "trainers": trainers,
    "rewind": rewindings,
}
