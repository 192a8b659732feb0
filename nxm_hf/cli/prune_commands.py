"""The commands that make a saved model sparse without training: `nxm prune` and `nxm convert`."""

from nxm_hf.cli.options import (
    BatchSize,
    CalibrationData,
    CalibrationInputs,
    LabelledData,
    LayerNames,
    Length,
    MethodName,
    MethodSettings,
    ModelDirectory,
    OnIndivisible,
    OutDirectory,
    PatternText,
    Samples,
    TargetPatternText,
    TextColumns,
    TokenizerDirectory,
)
from nxm_hf.config.values import parse_json
from nxm_hf.pruning.calibration import Sampling
from nxm_hf.pruning.directory import prune_directory


def prune_command(
    model: ModelDirectory,
    out: OutDirectory,
    *,
    pattern: PatternText = "2:4",
    method: MethodName = "sparsegpt",
    calibration: CalibrationData = "",
    columns: TextColumns = (),
    samples: Samples = 128,
    length: Length = 128,
    batch_size: BatchSize = 8,
    inputs: CalibrationInputs = "pruned",
    include: LayerNames = (),
    exclude: LayerNames = (),
    on_indivisible: OnIndivisible = "error",
    tokenizer: TokenizerDirectory = "",
    settings: MethodSettings = "",
    eval: LabelledData = "",
) -> int:
    """Make a saved model sparse without training, from a few sentences.

    Writes the sparse model and its tokenizer to OUT, completely or not at all. After an interruption, the same command
    continues after the last finished block. Exits with 0, or with 2 if an input cannot be read or does not fit.
    """
    result = prune_directory(
        model,
        out,
        parse_json("pattern", pattern),
        method,
        calibration or None,
        sampling=Sampling(samples, length, batch_size, columns=columns or None),
        tokenizer=tokenizer or None,
        settings=parse_json("settings", settings),
        inputs=inputs,
        include=include or None,
        exclude=exclude or None,
        on_indivisible=on_indivisible,
        evaluation=eval or None,
    )
    print(result)
    return 0


def convert_command(
    model: ModelDirectory,
    out: OutDirectory,
    *,
    to: TargetPatternText,
    method: MethodName = "magnitude",
    calibration: CalibrationData = "",
    columns: TextColumns = (),
    samples: Samples = 128,
    length: Length = 128,
    include: LayerNames = (),
    exclude: LayerNames = (),
    on_indivisible: OnIndivisible = "error",
    settings: MethodSettings = "",
    eval: LabelledData = "",
) -> int:
    """Bring a saved model to another pattern without training.

    Existing zeros stay where they cost nothing. Layers that already hold the pattern stay as they are. With calibration
    data, the table shows the output error of each layer, and that of pruning by magnitude. Exits with 0, or with 2 if
    an input cannot be read or does not fit.
    """
    return prune_command(
        model,
        out,
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
