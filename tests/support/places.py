"""Where the tests of each file of the package stand."""

from pathlib import Path

TESTS = Path(__file__).parents[1]

# Files of the package whose tests stand in another file than `tests/<folder>/test_<file>.py`.
ELSEWHERE = {
    "cli/adapter_commands.py": "adapters/test_directory.py",
    "cli/prune_commands.py": "pruning/test_directory.py",
    "config/hub.py": "config/test_config_files.py",
    "config/values.py": "config/test_config.py",
    "engine/engine.py": "engine/test_engine_*.py",
    "patterns/base.py": "patterns/test_patterns.py",
    "patterns/block.py": "patterns/test_patterns.py",
    "patterns/dense.py": "patterns/test_patterns.py",
    "patterns/nm.py": "patterns/test_patterns.py",
    "patterns/transposable.py": "patterns/test_patterns.py",
    "patterns/unstructured.py": "patterns/test_patterns.py",
    "pruners/magnitude.py": "pruners/test_base.py",
    "pruning/job.py": "pruning/test_prune.py",
    "pruning/streamed_files.py": "pruning/test_streamed_blocks.py",
    "recipes/dense.py": "trainer/test_trainer.py",
    "recipes/rigl.py": "methods/test_rewire.py",
    "recipes/set.py": "methods/test_rewire.py",
    "report/figure.py": "report/test_training_page.py",
    "report/html.py": "report/test_training_page.py",
    "report/pruning_page.py": "report/test_report.py",
    "report/svg.py": "report/test_charts.py",
    "solvers/cpu/adamw_entries.py": "solvers/test_masked_adamw.py",
    "solvers/cpu/block_sums.py": "solvers/cpu/test_lists_and_parts.py",
    "solvers/cpu/unstructured_rows.py": "solvers/cpu/test_unstructured.py",
    "solvers/dense.py": "solvers/test_solvers.py",
    "solvers/nm_network.py": "solvers/test_nm_sort.py",
    "solvers/transposable_paths.py": "solvers/test_transposable_duals.py",
    "solvers/transposable_tiles.py": "solvers/test_transposable_duals.py",
    "storage/shard_writer.py": "storage/test_packed_directory.py",
    "trainer/analysis_callback.py": "analysis/test_recording.py",
}


def place_of(file: str) -> str:
    """Return where the tests of a file stand: a path under `tests/`, or a glob pattern.

    Tables are tested by folder. So are kernels and other files of deeper folders, unless a test file has their name.

    Args:
        file: A path under `nxm_hf/`, such as "engine/attach.py".
    """
    path = Path(file)
    own = f"{path.parent}/test_{path.name}"
    by_folder = path.parts[0] == "families" or (len(path.parts) != 2 and not (TESTS / own).is_file())
    return ELSEWHERE.get(file, f"{path.parent}/test_*.py" if by_folder else own)
