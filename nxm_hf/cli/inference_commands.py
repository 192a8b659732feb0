"""The commands that run sparse models. Each returns its exit code."""

from nxm_hf.cli.commands import show
from nxm_hf.cli.options import AsJson, BenchDirectory, Compiled, Device, Dtype, Model, Numbers, Seconds, Threads

PAGE, NUMBERS = "bench.html", "bench.json"


def bench_command(
    model: Model,
    batch: Numbers = "1 8",
    length: Numbers = "16 128",
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    compiled: Compiled = True,
    seconds: Seconds = 1.0,
    out: BenchDirectory = None,
    as_json: AsJson = False,
) -> int:
    """Time a sparse model dense and packed, layer by layer and as a whole, on this machine.

    Every way to compute is run in turns with the others. Exits with 0, or with 2 if the model cannot be read or holds
    nothing that can be packed.
    """
    batches, lengths = (_numbers(text, name) for text, name in ((batch, "--batch"), (length, "--length")))
    import json
    from pathlib import Path

    import torch

    from nxm_hf.inference.bench import bench
    from nxm_hf.storage.model_files import load_model_on
    from nxm_hf.storage.model_source import model_directory

    if threads is not None:
        torch.set_num_threads(threads)
    loaded = load_model_on(model_directory(model), device, dtype)
    result = bench(loaded, batches, lengths, compiled, seconds, Path(model).name)
    if out is not None:
        from nxm_hf.config.hub import write_text
        from nxm_hf.report.bench_page import bench_charts, bench_page
        from nxm_hf.report.png import write_pngs

        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / PAGE, bench_page(result))
        write_text(folder / NUMBERS, json.dumps(result.to_dict(), indent=2) + "\n")
        write_pngs(bench_charts(result), folder)
    show(result, as_json)
    return 0


def _numbers(text: str, name: str) -> list[int]:
    """Return the numbers of an option.

    Args:
        text: Numbers with spaces or commas between them.
        name: The option, for the error.

    Raises:
        ValueError: If a word is not a number of at least 1.
    """
    words = text.replace(",", " ").split()
    if not words or not all(word.isdigit() and int(word) > 0 for word in words):
        raise ValueError(f"{name} {text!r} must be numbers of at least 1; write {name} 1 8 32.")
    return [int(word) for word in words]
