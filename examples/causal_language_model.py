"""Fine-tune a causal language model to N:M sparsity with TRL. It needs `pip install trl`.

    python causal_language_model.py --recipe admm --pattern 2:4 --bf16 --output_dir qwen-2of4

It takes all options of `NxMConfig` and `SFTConfig`; `--help` lists them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser
from trl import SFTConfig, SFTTrainer

from nxm_hf import NxMCallback, NxMConfig, verify


@dataclass
class Script:
    """A model, and a dataset in a form that SFTTrainer takes, by name or directory."""

    model_name_or_path: str = "Qwen/Qwen2.5-0.5B"
    dataset_name: str = "trl-lib/Capybara"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, evaluate, save and verify."""
    options: Any = (Script, NxMConfig, SFTConfig)
    script, sparsity, args = HfArgumentParser(options).parse_args_into_dataclasses(arguments)
    rows = load_dataset(script.dataset_name)
    trainer = SFTTrainer(
        # In float32: small updates of weights in bfloat16 would round to nothing. `--bf16` computes in bfloat16.
        model=AutoModelForCausalLM.from_pretrained(script.model_name_or_path, dtype=torch.float32),
        args=args,
        train_dataset=rows["train"],
        eval_dataset=rows["test"],
        processing_class=AutoTokenizer.from_pretrained(script.model_name_or_path),
        callbacks=[NxMCallback(sparsity)],
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    print(trainer.evaluate())  # of the sparse weights
    trainer.save_model()
    if not sparsity.is_dense:
        print(verify(args.output_dir).summary())


if __name__ == "__main__":
    main()
