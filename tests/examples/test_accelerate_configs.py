"""The config files of accelerate: it takes them, and they ask for what nxm_hf supports."""

from pathlib import Path

import pytest
from accelerate import ParallelismConfig
from accelerate.commands.config import load_config_from_file
from accelerate.utils import FullyShardedDataParallelPlugin

from nxm_hf.trainer.unsupported import _refuse_unsupported_fsdp

FOLDER = Path(__file__).parents[2] / "examples" / "accelerate_configs"
CONFIGS = sorted(FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_takes_every_config_file(path):
    config = load_config_from_file(str(path))  # raises for unknown keys
    assert config.num_processes in (2, 4) and config.distributed_type.value in ("MULTI_GPU", "FSDP")


def test_hybrid_sharding_makes_a_replica_of_each_machine():
    config = load_config_from_file(str(FOLDER / "hsdp.yaml"))
    sizes = {name.removeprefix("parallelism_config_"): size for name, size in config.parallelism_config.items()}
    assert ParallelismConfig(**sizes).total_size == config.num_processes
    assert sizes["dp_replicate_size"] == config.num_machines


@pytest.mark.parametrize("name", ["fsdp2", "hsdp"])
def test_what_the_sharding_configs_ask_for_is_supported(name):
    asked = {
        name.removeprefix("fsdp_"): x
        for name, x in load_config_from_file(str(FOLDER / f"{name}.yaml")).fsdp_config.items()
    }
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=asked["version"],
        state_dict_type=asked["state_dict_type"],
        cpu_ram_efficient_loading=asked["cpu_ram_efficient_loading"],
    )
    _refuse_unsupported_fsdp(plugin)
    plugin.cpu_ram_efficient_loading = True
    with pytest.raises(ValueError, match="cpu_ram_efficient_loading: false"):
        _refuse_unsupported_fsdp(plugin)
