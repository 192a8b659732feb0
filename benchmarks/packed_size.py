"""The size of packed weights beside plain ones, compressed and not, and the time and memory that loading takes.

    python benchmarks/packed_size.py path/to/sparse-model
    python benchmarks/packed_size.py path/to/all-MiniLM-L6-v2 --prune 2:4 --dtype bfloat16 --rounds 15

Plain, packed and unpacked loads take turns in one process, so that other load on the machine slows all alike. Plain
weights are mapped from the file, and read when they are first used. So loads are also timed with every page of the
weights read once. Memory is measured in a separate process for each form, with all weights read. It is the peak while
loading, and the size afterwards, both minus the size before. The files are in the system's cache.
"""

import argparse
import gc
import json
import logging
import lzma
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModel, PreTrainedModel
from transformers.utils import logging as transformers_logging

import nxm_hf
from nxm_hf.storage.packed_directory import pack_directory
from nxm_hf.storage.weight_files import WeightFiles
from nxm_hf.text import table

FORMS = ("plain", "packed", "unpacked")


def load(form: str, plain: Path, packed: Path) -> PreTrainedModel:
    """Load a model with from_pretrained.

    Args:
        form: "plain", "packed", or "unpacked" for packed files that become a dense model.
        plain: Directory with plain weights.
        packed: Directory with packed weights.
    """
    if form == "unpacked":
        config = nxm_hf.NxMPackedConfig(dequantize=True)
        unpacked: PreTrainedModel = AutoModel.from_pretrained(packed, quantization_config=config)
        return unpacked
    model: PreTrainedModel = AutoModel.from_pretrained(plain if form == "plain" else packed)
    return model


def compressor() -> tuple[str, Callable[[Path], int]]:
    """Return the name of a compressor, and a function that returns the bytes of a compressed file."""
    if shutil.which("zstd"):
        return "zstd -9", lambda path: len(
            subprocess.run(["zstd", "-9", "-q", "-c", str(path)], capture_output=True, check=True).stdout
        )
    return "lzma 1", lambda path: len(lzma.compress(path.read_bytes(), preset=1))


def sizes(plain: Path, packed: Path) -> str:
    """Return a table of bytes: the pruned layers, all weights, and all weights compressed.

    Args:
        plain: Directory with plain weights.
        packed: Directory with packed weights.
    """
    with WeightFiles(packed) as files:
        layers = dict(zip(("packed", "plain"), files.packed_bytes(), strict=True))
    name, compress = compressor()
    rows = []
    whole = sum(path.stat().st_size for path in plain.glob("*.safetensors"))
    for form, folder in (("plain", plain), ("packed", packed)):
        paths = list(folder.glob("*.safetensors"))
        numbers = (sum(path.stat().st_size for path in paths), sum(map(compress, paths)))
        share = f"{layers[form]:,} ({layers[form] / layers['plain']:.2%})"
        rows.append((form, share, *(f"{number:,} ({number / whole:.1%})" for number in numbers)))
    return table(("form", "pruned layers", "all weights", f"all weights, {name}"), rows)


def read_all(model: PreTrainedModel) -> None:
    """Read one byte of each page of the weights.

    Args:
        model: The model.
    """
    for tensor in model.state_dict().values():
        if tensor.numel():
            tensor.flatten().view(torch.uint8)[::4096].sum()


def load_times(plain: Path, packed: Path, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Return the seconds of each load of each form, in turns: until it returns, and until all weights are read.

    Args:
        plain: Directory with plain weights.
        packed: Directory with packed weights.
        rounds: Loads of each form.
    """
    times: dict[str, list[tuple[float, float]]] = {form: [] for form in FORMS}
    for _ in range(rounds + 1):  # the first round is not counted
        for form, seconds in times.items():
            gc.collect()
            start = time.perf_counter()
            model = load(form, plain, packed)
            loaded = time.perf_counter() - start
            read_all(model)
            seconds.append((loaded, time.perf_counter() - start))
            del model
    return {form: seconds[1:] for form, seconds in times.items()}


def resident(key: str) -> int:
    """Return a number of bytes that the system states for this process.

    Args:
        key: "VmRSS" for memory in use, or "VmHWM" for the most so far.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


def measure_memory(form: str, plain: Path, packed: Path) -> None:
    """Load in this process and print the most memory while it loaded and the memory afterwards, as JSON.

    Args:
        form: As for `load`.
        plain: Directory with plain weights.
        packed: Directory with packed weights.
    """
    with tempfile.TemporaryDirectory() as folder:  # imports and caches are not counted
        config = AutoModel.from_pretrained(plain).config
        config.num_hidden_layers = 1
        AutoModel.from_config(config).save_pretrained(folder)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # begin VmHWM anew
    before = resident("VmRSS")
    model = load(form, plain, packed)
    read_all(model)
    most = resident("VmHWM") - before
    gc.collect()
    print(json.dumps([most, resident("VmRSS") - before, model.get_memory_footprint()]))


def memory(form: str, plain: Path, packed: Path) -> list[int]:
    """Return what `measure_memory` prints in a process of its own.

    Args:
        form: As for `load`.
        plain: Directory with plain weights.
        packed: Directory with packed weights.
    """
    command = [sys.executable, __file__, "--memory-of", form, str(plain), "--packed", str(packed)]
    numbers: list[int] = json.loads(
        subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip().splitlines()[-1]
    )
    return numbers


def loading(plain: Path, packed: Path, rounds: int) -> str:
    """Return a table of the time and memory that loading takes.

    Args:
        plain: Directory with plain weights.
        packed: Directory with packed weights.
        rounds: Loads of each form.
    """
    times = load_times(plain, packed, rounds)
    rows = []
    for form in FORMS:
        cells = []
        for ours, theirs in zip(zip(*times[form], strict=True), zip(*times["plain"], strict=True), strict=True):
            ratio = statistics.median(one / other for one, other in zip(ours, theirs, strict=True))
            cells.append(f"{1000 * statistics.median(ours):.0f} ({ratio:.2f}x)")
        rows.append((form, *cells, *(f"{number / 1e6:.1f}" for number in memory(form, plain, packed))))
    return table(("load", "ms", "ms, with all weights read", "most MB", "MB afterwards", "MB of tensors"), rows)


def prepare(source: Path, folder: Path, pattern: str, dtype: str) -> Path:
    """Prune a model by magnitude and save it.

    Args:
        source: Directory of the model.
        folder: The directory to write.
        pattern: The pattern.
        dtype: Type of the weights.
    """
    model = AutoModel.from_pretrained(source, dtype=getattr(torch, dtype))
    nxm_hf.prune(model, pattern)
    model.save_pretrained(folder)
    return folder


def main() -> None:
    """Parse the arguments and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="directory of a sparse model, or of any model with --prune")
    parser.add_argument("--prune", metavar="PATTERN", help="prune the model by magnitude first")
    parser.add_argument("--dtype", default="float32", help="type of the weights with --prune (default: float32)")
    parser.add_argument("--rounds", type=int, default=9, help="loads of each form (default: 9)")
    parser.add_argument("--packed", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--memory-of", choices=FORMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if options.memory_of:
        return measure_memory(options.memory_of, options.model, options.packed)
    with tempfile.TemporaryDirectory() as work:
        plain, packed = options.model, Path(work, "packed")
        if options.prune:
            plain = prepare(plain, Path(work, "plain"), options.prune, options.dtype)
        print(pack_directory(plain, packed), end="\n\n")
        print(sizes(plain, packed), end="\n\n")
        print(loading(plain, packed, options.rounds))
    return None


if __name__ == "__main__":
    main()
