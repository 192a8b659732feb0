"""Question answering as in examples/question_answering.py, with rows held out, a teacher, and a file of answers."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import load_dataset
from transformers import (
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    DataCollatorWithPadding,
    HfArgumentParser,
    TrainingArguments,
)

from nxm_hf import NxMConfig, NxMTrainer

from .example_scripts import question_answering, squad


@dataclass
class Script(question_answering.Script):
    """The options of the example, and those of the comparison."""

    hold_out: float = 0.0  # evaluate on this last fraction of the training rows
    teacher: str | None = None  # a dense model to learn from, beside the answers
    distillation: str | None = None  # how to learn from it, as JSON


def read_options(arguments: Sequence[str] | None = None) -> tuple[Script, NxMConfig, TrainingArguments]:
    """Return the options of a command line.

    Args:
        arguments: The words of the command line; by default those of this process.

    Raises:
        ValueError: If an option would change the order of the windows.
    """
    options: Any = (Script, NxMConfig, TrainingArguments)
    script, sparsity, args = HfArgumentParser(options).parse_args_into_dataclasses(arguments)
    squad.check_order(args)
    return script, sparsity, args


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, evaluate, save, and write the answers with their scores.

    Args:
        arguments: The command line; by default that of this process.
    """
    script, sparsity, args = read_options(arguments)
    rows = load_dataset(script.dataset_name)
    if script.hold_out:  # the last rows: they are of other texts
        rows["train"], rows["validation"] = rows["train"].train_test_split(script.hold_out, shuffle=False).values()
    tokenizer = AutoTokenizer.from_pretrained(script.model_name_or_path)
    lengths = (script.max_seq_length, script.doc_stride)
    windows = {split: squad.cut_into_windows(rows[split], tokenizer, *lengths) for split in ("train", "validation")}
    questions, folder = rows["validation"], Path(args.output_dir or ".")

    def evaluate(prediction: Any) -> dict[str, float]:
        """Score the answers to all questions, and write them with their scores."""
        logits = prediction.predictions[:2]
        answers = squad.best_answers(logits, windows["validation"], questions, script.max_answer_length)
        scores = squad.score_all(answers, questions)
        if trainer.is_world_process_zero():
            lines = zip(questions["id"], answers, scores, strict=True)
            text = [json.dumps({"id": name, "answer": answer, **both}) + "\n" for name, answer, both in lines]
            (folder / "predictions.jsonl").write_text("".join(text), encoding="utf-8")
        return squad.mean_scores(scores)

    trainer = NxMTrainer(
        model=AutoModelForQuestionAnswering.from_pretrained(script.model_name_or_path),
        args=args,
        train_dataset=windows["train"],
        eval_dataset=windows["validation"],
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=evaluate,
        sparsity=sparsity,
        teacher=script.teacher,
        distillation=json.loads(script.distillation) if script.distillation else None,
    )
    result = trainer.train()
    trainer.save_metrics("train", {**result.metrics, "train_samples": len(windows["train"])})
    trainer.save_state()
    metrics = trainer.evaluate()  # of the sparse weights
    trainer.save_metrics("eval", metrics)
    print(metrics)
    trainer.save_model()
