"""Prune a causal language model without training, from a few hundred texts.

    python prune_without_training.py --calibration train.txt --evaluation test.txt --output_dir qwen-2of4

`nxm prune` does the same from a shell, and can continue a job that was killed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser

from nxm_hf import prune, verify


@dataclass
class Script:
    """A model by name or directory, texts, and what to do with them."""

    model_name_or_path: str = "Qwen/Qwen2.5-0.5B"
    calibration: str | None = None  # a .txt, .parquet, .csv, .tsv or .jsonl file, or the name of a dataset
    evaluation: str | None = None  # a text, whose perplexity is computed before and after
    pattern: str = "2:4"
    method: str | None = None  # by default "alps" with calibration data, and "magnitude" without
    output_dir: str = "pruned"


def main(arguments: Sequence[str] | None = None) -> None:
    """Prune, save and verify."""
    options: Any = Script
    (script,) = HfArgumentParser(options).parse_args_into_dataclasses(arguments)
    model = AutoModelForCausalLM.from_pretrained(script.model_name_or_path)
    tokenizer = AutoTokenizer.from_pretrained(script.model_name_or_path)
    print(prune(model, script.pattern, script.method, script.calibration, tokenizer, evaluation=script.evaluation))
    model.save_pretrained(script.output_dir)
    tokenizer.save_pretrained(script.output_dir)
    print(verify(script.output_dir).summary())


if __name__ == "__main__":
    main()
