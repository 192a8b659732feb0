"""Fine-tune a model to find answers in a text, to N:M sparsity. It needs `pip install datasets`, and squad.py.

    python question_answering.py --recipe admm --pattern 2:4 --output_dir bert-squad-2of4

It takes all options of `NxMConfig` and `TrainingArguments`; `--help` lists them. A long text is cut into windows that
overlap, and its answer is the best span of all. Exact match and F1 are those of SQuAD, as fractions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import squad
from datasets import load_dataset
from transformers import (
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    DataCollatorWithPadding,
    HfArgumentParser,
    TrainingArguments,
    set_seed,
)

from nxm_hf import NxMConfig, NxMTrainer, verify


@dataclass
class Script:
    """A model, and a dataset in the form of SQuAD, by name or directory; lengths are in tokens."""

    model_name_or_path: str = "google-bert/bert-base-uncased"
    dataset_name: str = "rajpurkar/squad"
    max_seq_length: int = 384
    doc_stride: int = 128  # what two windows of a text share
    max_answer_length: int = 30


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, evaluate, save and verify."""
    options: Any = (Script, NxMConfig, TrainingArguments)
    script, sparsity, args = HfArgumentParser(options).parse_args_into_dataclasses(arguments)
    set_seed(args.seed)  # of a new head
    squad.check_order(args)
    rows = load_dataset(script.dataset_name)
    tokenizer = AutoTokenizer.from_pretrained(script.model_name_or_path)
    lengths = (script.max_seq_length, script.doc_stride)
    train, validation = (squad.cut_into_windows(rows[split], tokenizer, *lengths) for split in ("train", "validation"))

    def exact_match_and_f1(prediction: Any) -> dict[str, float]:
        questions = rows["validation"]
        answers = squad.best_answers(prediction.predictions[:2], validation, questions, script.max_answer_length)
        return squad.mean_scores(squad.score_all(answers, questions))

    trainer = NxMTrainer(
        model=AutoModelForQuestionAnswering.from_pretrained(script.model_name_or_path),
        args=args,
        train_dataset=train,
        eval_dataset=validation,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=exact_match_and_f1,
        sparsity=sparsity,
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    print(trainer.evaluate())  # of the sparse weights
    trainer.save_model()
    if not sparsity.is_dense:
        print(verify(args.output_dir).summary())


if __name__ == "__main__":
    main()
