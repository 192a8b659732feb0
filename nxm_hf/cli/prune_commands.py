"""The commands that make a saved model sparse without training: `nxm prune` and `nxm convert`."""

from typing import Annotated

from nxm_hf import pruners
from nxm_hf.config.values import parse_json
from nxm_hf.pruning.calibration import Sampling
from nxm_hf.pruning.directory import prune_directory

Model = Annotated[str, "a directory that save_model or save_pretrained wrote, dense or sparse"]
Out = Annotated[str, "the directory to write; one that is there already is never overwritten"]
Wanted = Annotated[str, "where zeros may stand, as 2:4 (default), or by role as JSON"]
To = Annotated[str, "where zeros may stand, as 4:8, or by role as JSON"]
Method = Annotated[str, f"{', '.join(pruners.names())} (default: %(default)s)"]
Texts = Annotated[str, "a file of texts (.txt, .parquet, .csv, .jsonl), or a data set of the Hub; magnitude needs none"]
Labelled = Annotated[
    str, "labelled rows (.parquet, .csv, .jsonl: one or two columns of text, and label) to be judged on"
]
Columns = Annotated[list[str], "the columns of the file to read (default: the first that holds text)"]
Samples = Annotated[int, "how many sequences are read (default: %(default)s)"]
Length = Annotated[int, "tokens of each (default: %(default)s)"]
BatchSize = Annotated[int, "sequences at a time (default: %(default)s)"]
Seen = Annotated[str, "layers are fitted to inputs as the blocks before give them: pruned (default) or dense"]
Entries = Annotated[list[str], "layer names, roles as ffn, or re: patterns; as in NxMConfig"]
Unfit = Annotated[str, "what to do with layers that the pattern does not fit: error (default) or skip"]
Tokenizer = Annotated[str, "a directory with the tokenizer (default: the model's own)"]
Settings = Annotated[str, "the method's own settings, as JSON"]


def prune_command(
    model: Model,
    out: Out,
    *,
    pattern: Wanted = "2:4",
    method: Method = "sparsegpt",
    calibration: Texts = "",
    columns: Columns = (),
    samples: Samples = 128,
    length: Length = 128,
    batch_size: BatchSize = 8,
    inputs: Seen = "pruned",
    include: Entries = (),
    exclude: Entries = (),
    on_indivisible: Unfit = "error",
    tokenizer: Tokenizer = "",
    settings: Settings = "",
    eval: Labelled = "",
) -> int:
    """Make a saved model sparse without training, from a few sentences.

    Writes the sparse model with its tokenizer to OUT, whole or not at all. When it was killed, the same command goes
    on after the last finished block. Exits with 0, or with 2 when something cannot be read or does not fit.
    """
    outcome = prune_directory(
        *(model, out, parse_json("pattern", pattern), method, calibration or None),
        sampling=Sampling(samples, length, batch_size, columns=columns or None),
        tokenizer=tokenizer or None,
        settings=parse_json("settings", settings),
        inputs=inputs,
        include=include or None,
        exclude=exclude or None,
        on_indivisible=on_indivisible,
        evaluation=eval or None,
    )
    print(outcome)
    return 0


def convert_command(
    model: Model,
    out: Out,
    *,
    to: To,
    method: Method = "magnitude",
    calibration: Texts = "",
    columns: Columns = (),
    samples: Samples = 128,
    length: Length = 128,
    include: Entries = (),
    exclude: Entries = (),
    on_indivisible: Unfit = "error",
    settings: Settings = "",
    eval: Labelled = "",
) -> int:
    """Bring a saved model to another pattern without training.

    Zeros that are there stay where they cost nothing; layers that hold the pattern already stay as they are. With
    calibration data the table shows what the outputs of each layer lose, by magnitude too. Exits with 0, or with 2.
    """
    return prune_command(
        *(model, out),
        pattern=to,
        method=method,
        calibration=calibration,
        columns=columns,
        samples=samples,
        length=length,
        include=include,
        exclude=exclude,
        on_indivisible=on_indivisible,
        settings=settings,
        eval=eval,
    )
