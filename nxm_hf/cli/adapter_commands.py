"""The command that merges an adapter into its sparse base. It returns its exit code."""

from nxm_hf.cli.commands import show
from nxm_hf.cli.options import (
    AdapterDirectory,
    AsJson,
    BaseModel,
    Calibration,
    Columns,
    Length,
    MergeMethod,
    OutDirectory,
    Samples,
)


def merge_command(
    base: BaseModel,
    adapter: AdapterDirectory,
    out: OutDirectory,
    method: MergeMethod = None,
    calibration: Calibration = None,
    columns: Columns = None,
    samples: Samples = 128,
    length: Length = 128,
    as_json: AsJson = False,
) -> int:
    """Merge a LoRA into its sparse base model, and keep it sparse.

    Without --method, the masks of the base are kept. That is exact for an adapter that was masked in training. The
    table shows what it drops of any other adapter. Writes the model to OUT, completely or not at all. Exits with 0, or
    with 2 if an input cannot be read or does not fit.
    """
    from nxm_hf.adapters.directory import merge_directory
    from nxm_hf.pruning.calibration import Sampling

    sampling = Sampling(samples, length, columns=columns)
    show(merge_directory(base, adapter, out, method, calibration, sampling), as_json)
    return 0
