"""Fine-tune a Transformer to N:M sparsity on a GLUE task, or on data of your own.

    python run_glue.py --model_name_or_path bert-base-uncased --task_name rte --pattern 2:4 --recipe admm \
        --do_train --do_eval --output_dir out

It takes all options of `TrainingArguments` and of `NxMConfig`; `--help` lists them. With `--task_name demo --output_dir
out` it needs no network, no model and no data. It needs two files beside it: glue_data.py and glue_metric.py.
"""

import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import datasets
import evaluate
import numpy as np
import transformers
from glue_data import TASKS, DataError, DataOptions, Task, load_rows, select, task_of, tokenize
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    HfArgumentParser,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import PredictionOutput

from nxm_hf import NxMConfig, NxMTrainer
from nxm_hf.config.hub import CONFIG_SUFFIXES, read_config_file
from nxm_hf.storage.checkpoints import newest_complete

logger = logging.getLogger("run_glue")
METRIC = str(Path(__file__).with_name("glue_metric.py"))


@dataclass
class ModelOptions:
    """Options of the model."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "A Hub model, or a directory."})
    tokenizer_name: str | None = field(default=None, metadata={"help": "A tokenizer that is not the model's own."})
    revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the model."})
    token: str | None = field(default=None, metadata={"help": "Access token for private models and data sets."})
    cache_dir: str | None = field(default=None, metadata={"help": "Folder for downloads."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with a Hub model."})
    dtype: str = field(default="float32", metadata={"help": "Type of the weights; --bf16 does not change it."})
    from_scratch: bool = field(default=False, metadata={"help": "Start from random weights in the model's shape."})
    config_overrides: str | None = field(
        default=None, metadata={"help": "Changes of the shape, as JSON: '{\"intermediate_size\": 768}'."}
    )
    teacher: str | None = field(default=None, metadata={"help": "A dense model to learn from, beside the labels."})
    distillation: str | None = field(
        default=None, metadata={"help": 'How to learn from it, as JSON: \'{"temperature": 2.0, "weight": 0.5}\'.'}
    )


@dataclass
class Run:
    """All options of one run."""

    data: DataOptions
    model: ModelOptions
    sparsity: NxMConfig
    training: TrainingArguments

    @property
    def output_dir(self) -> Path:
        """Return where the run writes to."""
        return Path(self.training.output_dir or ".")

    @property
    def is_demo(self) -> bool:
        """Return whether to run the whole demo, rather than one training on its rows."""
        return self.data.task == "demo" and not self.data.names_rows


# -- model --------------------------------------------------------------------------------------------------------


def load_tokenizer(run: Run) -> PreTrainedTokenizerBase:
    """Load the tokenizer; one without a padding token, as decoders have, pads with its end of text."""
    options = run.model
    tokenizer = AutoTokenizer.from_pretrained(
        options.tokenizer_name or options.model_name_or_path,
        revision=options.revision,
        token=options.token,
        cache_dir=options.cache_dir,
        trust_remote_code=options.trust_remote_code,
    )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(run: Run, task: Task, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Load the model with a head for a task."""
    options = run.model
    assert options.model_name_or_path is not None  # `read_options` has checked it
    source = {
        "revision": options.revision,
        "token": options.token,
        "cache_dir": options.cache_dir,
        "trust_remote_code": options.trust_remote_code,
    }
    labels = task.labels or ("score",)
    config = AutoConfig.from_pretrained(
        options.model_name_or_path,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
        **source,
        **json.loads(options.config_overrides or "{}"),
    )
    if config.get_text_config().pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    if options.from_scratch:
        return AutoModelForSequenceClassification.from_config(config, trust_remote_code=options.trust_remote_code)
    return AutoModelForSequenceClassification.from_pretrained(
        options.model_name_or_path, config=config, dtype=options.dtype, ignore_mismatched_sizes=True, **source
    )


def evaluation_rows(run: Run, task: Task, rows: datasets.DatasetDict) -> datasets.Dataset | None:
    """Return the rows to evaluate during training: those of the first evaluation split, or None."""
    if not run.training.do_eval and run.training.eval_strategy == "no":
        return None
    return select(rows, f"validation{task.splits[0]}", run.data.max_eval_samples)


def make_trainer(run: Run) -> tuple[NxMTrainer, Task, datasets.DatasetDict]:
    """Return the trainer of a run, with its task and its tokenized rows."""
    set_seed(run.training.seed)
    rows = load_rows(run.data, cache_dir=run.model.cache_dir, token=run.model.token)
    task = task_of(run.data, rows)
    tokenizer = load_tokenizer(run)
    with run.training.main_process_first(desc="tokenizing"):
        rows = tokenize(rows, task, tokenizer, run.data)
    model = load_model(run, task, tokenizer)
    trainer = NxMTrainer(
        model=model,
        args=run.training,
        train_dataset=select(rows, "train", run.data.max_train_samples) if run.training.do_train else None,
        eval_dataset=evaluation_rows(run, task, rows),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8 if run.training.fp16 else None),
        compute_metrics=make_metrics(run, task),
        sparsity=run.sparsity,
        teacher=run.model.teacher,
        distillation=json.loads(run.model.distillation) if run.model.distillation else None,
    )
    return trainer, task, rows


# -- training -----------------------------------------------------------------------------------------------------


def checkpoint_to_resume(run: Run) -> str | None:
    """Return the checkpoint that was named, or else the newest complete one in the output directory."""
    if run.training.resume_from_checkpoint or not list(run.output_dir.glob("checkpoint-*")):
        return run.training.resume_from_checkpoint
    try:
        checkpoint = newest_complete(run.output_dir)
    except ValueError as error:
        logger.warning("Training from the start: %s", error)
        return None
    logger.warning("Resuming from %s; give another --output_dir to train from the start.", checkpoint)
    return checkpoint


def train(run: Run, trainer: NxMTrainer) -> None:
    """Train, save the sparse model, and write the metrics of the training."""
    rows = cast(datasets.Dataset, trainer.train_dataset)
    result = trainer.train(resume_from_checkpoint=checkpoint_to_resume(run))
    metrics = {**result.metrics, "train_samples": len(rows)}
    trainer.save_model()
    trainer.log_metrics("train", metrics)
    trainer.save_metrics("train", metrics)
    trainer.save_state()


# -- evaluation ---------------------------------------------------------------------------------------------------


def decode(outputs: Any, task: Task) -> np.ndarray:
    """Return the labels or scores that a model predicts."""
    logits = outputs[0] if isinstance(outputs, tuple) else outputs
    return logits.argmax(-1) if task.labels else logits.squeeze(-1)


def make_metrics(run: Run, task: Task) -> Callable[[EvalPrediction], dict[str, float]]:
    """Return the function `compute_metrics` of a Trainer, by the `evaluate` module beside this file."""
    default = "classification" if task.labels else "regression"
    metric = evaluate.load(METRIC, run.data.task if run.data.task in TASKS else default)

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        return metric.compute(predictions=decode(prediction.predictions, task), references=prediction.label_ids)

    return compute


def evaluate_splits(run: Run, trainer: NxMTrainer, task: Task, rows: datasets.DatasetDict) -> dict[str, float]:
    """Evaluate every evaluation split, and write the predictions of each to a file."""
    metrics: dict[str, float] = {}
    for suffix in task.splits:
        split = select(rows, f"validation{suffix}", run.data.max_eval_samples)
        prefix = "eval" if suffix == task.splits[0] else f"eval{suffix}"
        output = predict_in_order(trainer, split, prefix)
        write_predictions(trainer, f"eval_results_{run.data.task}{suffix}.txt", task, output)
        metrics |= {**(output.metrics or {}), f"{prefix}_samples": len(split)}
    trainer.log({name: value for name, value in metrics.items() if not name.endswith("_samples")})
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)
    return metrics


def predict_splits(run: Run, trainer: NxMTrainer, task: Task, rows: datasets.DatasetDict) -> None:
    """Write the predictions for every test split to a file."""
    for suffix in task.splits:
        split = select(rows, f"test{suffix}", run.data.max_predict_samples)
        output = predict_in_order(trainer, split, "test")
        write_predictions(trainer, f"predict_results_{run.data.task}{suffix}.txt", task, output)


def predict_in_order(trainer: NxMTrainer, rows: datasets.Dataset, prefix: str) -> PredictionOutput:
    """Return predictions in the order of the rows.

    A Trainer that groups training rows by length changes the order of these rows as well.
    """
    strategy, trainer.args.train_sampling_strategy = trainer.args.train_sampling_strategy, "random"
    try:
        return trainer.predict(rows, metric_key_prefix=prefix)
    finally:
        trainer.args.train_sampling_strategy = strategy


def write_predictions(trainer: NxMTrainer, name: str, task: Task, output: PredictionOutput) -> None:
    """Write a line for each prediction: its number, the prediction, and the label if it is known."""
    if not trainer.is_world_process_zero():
        return
    columns = [decode(output.predictions, task).tolist()]
    if output.label_ids is not None:
        columns.append(np.asarray(output.label_ids).tolist())
    format_value = (lambda value: task.labels[value]) if task.labels else "{:.3f}".format
    lines = ["\t".join(["index", "prediction", "label"][: len(columns) + 1])]
    lines += ["\t".join([str(i), *map(format_value, row)]) for i, row in enumerate(zip(*columns, strict=True))]
    Path(trainer.args.output_dir or ".", name).write_text("\n".join(lines) + "\n", encoding="utf-8")


# -- command line -------------------------------------------------------------------------------------------------


def execute(run: Run) -> dict[str, float]:
    """Train, evaluate and predict, as the options of a run say."""
    trainer, task, rows = make_trainer(run)
    metrics = {}
    if run.training.do_train:
        train(run, trainer)
    if run.training.do_eval:
        metrics = evaluate_splits(run, trainer, task, rows)
    if run.training.do_predict:
        predict_splits(run, trainer, task, rows)
    card: dict[str, Any] = {"finetuned_from": run.model.model_name_or_path, "tasks": "text-classification"}
    if run.training.push_to_hub:
        trainer.push_to_hub(**card)
    elif run.training.do_train:
        trainer.create_model_card(**card)
    return metrics


def read_options(arguments: Sequence[str]) -> Run:
    """Return the options of a command line, or of the JSON or YAML file that is its only word."""
    options: Any = (DataOptions, ModelOptions, NxMConfig, TrainingArguments)
    parser = HfArgumentParser(options)
    if len(arguments) == 1 and arguments[0].endswith(CONFIG_SUFFIXES):
        data, model, sparsity, training = parser.parse_dict(read_config_file(Path(arguments[0])))
    else:
        data, model, sparsity, training = parser.parse_args_into_dataclasses(arguments)
    run = Run(data, model, sparsity, training)
    if run.is_demo:
        return run
    if data.task_name is None and not data.names_rows:
        raise ValueError("No data to train on; add --task_name mrpc, or --train_file rows.csv.")
    if data.task_name is not None and data.task_name not in TASKS:
        raise ValueError(f"There is no task {data.task_name!r}; --task_name is one of {', '.join(TASKS)}.")
    if model.model_name_or_path is None:
        raise ValueError("No model is named; add --model_name_or_path bert-base-uncased.")
    if not (training.do_train or training.do_eval or training.do_predict):
        raise ValueError("Nothing to do; add --do_train, --do_eval or --do_predict.")
    if not 0 <= data.hold_out < 1:
        raise ValueError(f"--hold_out is a fraction of the training rows, 0 to below 1; got {data.hold_out}.")
    return run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    try:
        run = read_options(sys.argv[1:] if arguments is None else arguments)
    except ValueError as error:
        raise SystemExit(f"run_glue.py: {error}") from None
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    transformers.utils.logging.set_verbosity(run.training.get_process_log_level())
    if run.is_demo:
        import demo

        return demo.run_demo(run)
    try:
        execute(run)
    except DataError as error:
        raise SystemExit(f"run_glue.py: {error}") from None
    return 0


if __name__ == "__main__":
    sys.exit(main())
