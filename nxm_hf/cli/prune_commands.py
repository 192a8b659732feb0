"""The commands that make a saved model sparse without training: `nxm prune`, `nxm convert`, `nxm eval`."""

from nxm_hf.cli.commands import show
from nxm_hf.cli.options import (
    AsJson,
    BatchSize,
    Calibration,
    Columns,
    Context,
    Device,
    Dtype,
    Exclude,
    Include,
    Inputs,
    Labelled,
    Length,
    Method,
    MethodSettings,
    Model,
    OnIndivisible,
    OutDirectory,
    Pattern,
    Permute,
    Reconstruct,
    Samples,
    Seed,
    Stride,
    TargetPattern,
    Text,
    Tokenizer,
)


def prune_command(
    model: Model,
    out: OutDirectory,
    pattern: Pattern = "2:4",
    method: Method = None,
    calibration: Calibration = None,
    columns: Columns = None,
    samples: Samples = 128,
    length: Length = 128,
    batch_size: BatchSize = 8,
    seed: Seed = None,
    inputs: Inputs = "pruned",
    reconstruct: Reconstruct = "none",
    permute: Permute = False,
    include: Include = None,
    exclude: Exclude = None,
    on_indivisible: OnIndivisible = "error",
    tokenizer: Tokenizer = None,
    settings: MethodSettings = None,
    device: Device = None,
    dtype: Dtype = None,
    eval: Labelled = None,
    as_json: AsJson = False,
) -> int:
    """Make a saved model sparse without training, from a few sentences.

    Writes the sparse model and its tokenizer to OUT, completely or not at all. After an interruption, the same command
    continues after the last finished block. Exits with 0, or with 2 if an input cannot be read or does not fit.
    """
    try:
        from nxm_hf.config.values import parse_json
        from nxm_hf.pruning.calibration import Sampling
        from nxm_hf.pruning.directory import prune_directory

        result = prune_directory(
            model,
            out,
            parse_json("pattern", pattern),
            method,
            calibration,
            sampling=Sampling(samples, length, batch_size, columns=columns, seed=seed),
            tokenizer=tokenizer,
            settings=parse_json("settings", settings),
            inputs=inputs,
            reconstruct=parse_json("reconstruct", reconstruct),
            permute=permute,
            include=include,
            exclude=exclude,
            on_indivisible=on_indivisible,
            device=device,
            dtype=dtype,
            evaluation=eval,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted. The same command continues after the last finished block.") from None
    show(result, as_json)
    return 0


def eval_command(
    model: Model,
    text: Text,
    context: Context = None,
    stride: Stride = None,
    columns: Columns = None,
    tokenizer: Tokenizer = None,
    device: Device = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> int:
    """Compute the perplexity of a causal language model on a text.

    The text is read in windows of CONTEXT tokens. Every token is predicted once. Exits with 0, or with 2 if an input
    cannot be read or does not fit.
    """
    from nxm_hf.pruning.calibration import named_tokenizer
    from nxm_hf.pruning.perplexity import perplexity
    from nxm_hf.pruning.text_rows import check_paths
    from nxm_hf.storage.model_files import load_model_on
    from nxm_hf.storage.model_source import model_directory

    check_paths(text)
    loaded = load_model_on(model_directory(model), device, dtype)
    reader = None if tokenizer is None else named_tokenizer(tokenizer)
    show(perplexity(loaded, text, reader, context=context, stride=stride, columns=columns), as_json)
    return 0


def convert_command(
    model: Model,
    out: OutDirectory,
    to: TargetPattern,
    method: Method = None,
    calibration: Calibration = None,
    columns: Columns = None,
    samples: Samples = 128,
    length: Length = 128,
    include: Include = None,
    exclude: Exclude = None,
    on_indivisible: OnIndivisible = "error",
    settings: MethodSettings = None,
    eval: Labelled = None,
    as_json: AsJson = False,
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
        as_json=as_json,
    )
