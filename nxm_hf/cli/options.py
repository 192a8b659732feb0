"""Types of command-line arguments, each with the text that `--help` shows for it."""

from collections.abc import Sequence
from typing import Annotated

from nxm_hf import pruners

# Directories.
ModelDirectory = Annotated[str, "a directory that save_model or save_pretrained wrote"]
TrainedDirectory = Annotated[str, "the model whose mask is used: a sparse one, or with --pattern a dense one"]
EarlyDirectory = Annotated[str, "an early checkpoint of the same training, or the model that it started from"]
RunDirectory = Annotated[str, "the output_dir of a finished training"]
RunDirectories = Annotated[
    Sequence[str], "the output_dir of a training, or a directory that `nxm prune` or `nxm convert` wrote"
]
OutDirectory = Annotated[str, "the directory to write; an existing one is never overwritten"]

# What becomes sparse, and how.
PatternText = Annotated[str, "the sparsity pattern, as 2:4 (default), or one for each role as JSON"]
TargetPatternText = Annotated[str, "the new sparsity pattern, as 4:8, or one for each role as JSON"]
RecordedPatternText = Annotated[str, "the pattern of the layers, as 2:4 (default: the one on record)"]
LayerNames = Annotated[Sequence[str], "layer names, roles such as ffn, or re: patterns; as in NxMConfig"]
OnIndivisible = Annotated[str, "what to do with a layer that the pattern does not fit: error (default) or skip"]

# Training recipes.
RecipeName = Annotated[str, "a name that `nxm recipes` lists (default: admm)"]
RecipeSettings = Annotated[str, "settings of the recipe, as JSON"]
Steps = Annotated[int, "optimizer steps of the training (default: 1000)"]
Fraction = Annotated[float, "a fraction of training, as in NxMConfig (default: 0, or the recipe's own)"]
TaskRows = Annotated[int, "number of training rows of your task"]
ExampleTokens = Annotated[int, "tokens of the example on which FLOPs are counted (default: %(default)s)"]

# Pruning without training.
MethodName = Annotated[str, f"{', '.join(pruners.names())} (default: %(default)s)"]
MethodSettings = Annotated[str, "settings of the method, as JSON"]
CalibrationData = Annotated[
    str, "a file of texts (.txt, .parquet, .csv, .jsonl) or a data set on the Hub; magnitude needs none"
]
TextColumns = Annotated[Sequence[str], "columns of the file to read (default: the first column of text)"]
Samples = Annotated[int, "number of calibration sequences (default: %(default)s)"]
Length = Annotated[int, "tokens of each calibration sequence (default: %(default)s)"]
BatchSize = Annotated[int, "calibration sequences per batch (default: %(default)s)"]
CalibrationInputs = Annotated[
    str, "whether layers are calibrated on the outputs of pruned (default) or dense earlier blocks"
]
TokenizerDirectory = Annotated[str, "a directory with the tokenizer (default: that of the model)"]
LabelledData = Annotated[
    str, "labelled rows to evaluate on (.parquet, .csv, .jsonl: one or two text columns, and label)"
]
