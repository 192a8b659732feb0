"""Types of command-line arguments, each with the text that `--help` shows for it.

Nothing heavy is imported here, so that `--help` and a typing error are answered at once.
"""

from typing import Annotated, Literal

from typer import Argument, Option

# Models and other directories.
Model = Annotated[str, Argument(metavar="MODEL", help="The directory of a model, or its name on the Hub.")]
BaseModel = Annotated[
    str, Argument(metavar="BASE", help="The directory of the sparse base model, or its name on the Hub.")
]
AdapterDirectory = Annotated[
    str, Argument(metavar="ADAPTER", help="The directory of the adapter, or its name on the Hub.")
]
TrainedDirectory = Annotated[
    str,
    Argument(metavar="TRAINED", help="The model whose mask is used: a sparse one, or with --pattern a dense one."),
]
EarlyDirectory = Annotated[
    str,
    Argument(metavar="CHECKPOINT", help="An early checkpoint of the same training, or the model that it started from."),
]
RunDirectory = Annotated[str | None, Argument(metavar="RUN_DIR", help="The output_dir of a finished training.")]
RunDirectories = Annotated[
    list[str],
    Argument(
        metavar="RUN_DIR",
        help="The output_dir of a training, or a directory that `nxm prune` or `nxm convert` wrote.",
    ),
]
OutDirectory = Annotated[
    str, Argument(metavar="OUT", help="The directory to write; an existing one is never overwritten.")
]
DemoDirectory = Annotated[str, Argument(metavar="OUT", help="The directory to write; it must not be there yet.")]
PageDirectory = Annotated[
    str | None, Option(metavar="DIR", help="The directory to write the page into, instead of the first RUN_DIR.")
]
PlannedModel = Annotated[
    str | None, Option(metavar="MODEL", help="The directory of the model to train, or its name on the Hub.")
]

# The form of the output.
AsJson = Annotated[bool, Option("--json", help="Print JSON instead of text.")]
AsSummary = Annotated[bool, Option("--summary", help="Print one line for each role and pattern, not for each layer.")]

# What becomes sparse, and how.
Pattern = Annotated[str, Option(metavar="N:M", help="The sparsity pattern, such as 2:4, or one for each role as JSON.")]
PlannedPattern = Annotated[
    str | None,
    Option(metavar="N:M", help="The sparsity pattern, such as 4:8, or one for each role as JSON.  [default: 2:4]"),
]
AdvicePattern = Annotated[str | None, Option(metavar="N:M", help="The sparsity pattern, such as 2:4.")]
TargetPattern = Annotated[
    str,
    Option(
        metavar="N:M", help="The new sparsity pattern, such as 4:8, or one for each role as JSON.", show_default=False
    ),
]
RecordedPattern = Annotated[
    str | None, Option(metavar="N:M", help="The pattern of the layers, such as 2:4.  [default: the one on record]")
]
Include = Annotated[
    list[str] | None,
    Option(
        metavar="LAYER",
        help="Prune only these layers: a name, a role such as ffn, or a re: pattern. Repeat it for several.",
    ),
]
Exclude = Annotated[list[str] | None, Option(metavar="LAYER", help="Leave these layers dense; written like --include.")]
OnIndivisible = Annotated[
    Literal["error", "skip"], Option(help="What to do with layers that the pattern does not fit.")
]

# Training recipes.
Recipe = Annotated[str | None, Option(metavar="NAME", help="A name that `nxm recipes` lists.  [default: admm]")]
RecipeSettings = Annotated[
    str | None, Option(metavar="JSON", help="Settings of the recipe, as JSON such as '{\"rho\": 0.01}'.")
]
Steps = Annotated[int | None, Option(min=1, help="Optimizer steps of the training.  [default: 1000]")]
DemoRecipe = Annotated[str, Option(metavar="NAME", help="A name that `nxm recipes` lists.")]
DemoSteps = Annotated[int, Option(help="Optimizer steps of each fine-tuning.")]
DemoSeed = Annotated[int, Option(help="The seed of the trainings.")]
Fraction = Annotated[float, Option(help="A fraction of training, as in NxMConfig; 0 means the recipe's own.")]
TaskRows = Annotated[int | None, Option(help="The number of training rows of your task.")]
Tokens = Annotated[int, Option(help="Tokens of the example on which FLOPs are counted.")]

# Pruning without training.
MethodName = Literal["magnitude", "wanda", "sparsegpt", "adaprune", "alps"]
Method = Annotated[
    MethodName | None,
    Option(
        help="How layers are pruned.  [default: alps with --calibration, which takes three times as long as "
        "sparsegpt; magnitude without]"
    ),
]
MergeMethod = Annotated[
    MethodName | None,
    Option(help="Prune the sum of base and adapter by this method.  [default: keep the masks of the base]"),
]
MethodSettings = Annotated[
    str | None, Option(metavar="JSON", help="Settings of the method, as JSON such as '{\"damping\": 0.01}'.")
]
Calibration = Annotated[
    str | None,
    Option(
        metavar="FILE",
        help="A file of texts (.txt, .parquet, .csv, .tsv or .jsonl) or a data set on the Hub. Magnitude needs none.",
    ),
]
Columns = Annotated[
    list[str] | None,
    Option(
        metavar="COLUMN",
        help="A column of the file to read. Repeat it for several.  [default: the first column of text]",
    ),
]
Samples = Annotated[int, Option(help="The number of calibration sequences.")]
Length = Annotated[int, Option(help="Tokens of each calibration sequence.")]
BatchSize = Annotated[int, Option(help="Calibration sequences per batch.")]
Seed = Annotated[
    int | None, Option(help="Draw the calibration sequences at random by this seed.  [default: evenly spaced ones]")
]
Inputs = Annotated[
    Literal["pruned", "dense"],
    Option(help="Whether layers are calibrated on outputs of pruned or dense earlier blocks."),
]
Permute = Annotated[bool, Option("--permute", help="Reorder channels before, so that masks keep more.")]
Reconstruct = Annotated[
    str,
    Option(
        metavar="SCOPE",
        help="'none', 'block' to train each pruned block to give the outputs of the dense one, or 'model' to train all "
        'pruned blocks together. Settings are JSON: \'{"scope": "model", "steps": 600}\'.',
    ),
]
Tokenizer = Annotated[
    str | None, Option(metavar="DIR", help="A directory with the tokenizer.  [default: that of the model]")
]
Device = Annotated[
    str | None, Option(metavar="DEVICE", help="Where to compute, such as cuda or cuda:1.  [default: cpu]")
]
Dtype = Annotated[
    Literal["float32", "bfloat16", "float16"] | None,
    Option(help="The type of the weights to compute with and to save.  [default: that of the model]"),
]
Labelled = Annotated[
    str | None,
    Option(
        metavar="FILE",
        help="What to evaluate on before and after: labelled rows (.parquet, .csv or .jsonl: one or two text columns, "
        "and label), or a text for a causal language model.",
    ),
]
Text = Annotated[
    str,
    Option(
        metavar="FILE",
        help="A text (.txt, .parquet, .csv, .tsv or .jsonl) or a data set on the Hub.",
        show_default=False,
    ),
]
Context = Annotated[
    int | None, Option(min=2, help="Tokens of a window.  [default: 2048, or as many as the model reads]")
]
Stride = Annotated[
    int | None, Option(min=1, help="Tokens from the start of a window to that of the next.  [default: the context]")
]

# Running.
Numbers = Annotated[str, Option(metavar="N ...", help="One or several numbers, such as 1 8 32.")]
Threads = Annotated[int | None, Option(min=1, help="Threads of torch.  [default: as many as torch takes]")]
Compiled = Annotated[bool, Option("--compiled/--not-compiled", help="Whether to time torch.compile too.")]
Seconds = Annotated[float, Option(help="How long to time each row, in about.")]
BenchDirectory = Annotated[
    str | None, Option(metavar="DIR", help="A directory to write a page, its plots and the numbers as JSON into.")
]
