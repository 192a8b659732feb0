"""The config on a command line, as transformers' HfArgumentParser reads it."""

import dataclasses
import json

from transformers import HfArgumentParser, TrainingArguments

from nxm_hf import NxMConfig


def _parse(*words):
    (config,) = HfArgumentParser(NxMConfig).parse_args_into_dataclasses(list(words))
    return config


def test_the_command_line_says_all_that_the_constructor_does():
    words = ["--recipe", "admm", "--settings", '{"rho": 0.01}', "--include", "query", "ffn", "--exclude", "ffn_out"]
    words += ["--pattern", '{"ffn": "2:4", "default": "4:8"}', "--on_indivisible", "skip"]
    words += ["--warmup", "0.1", "--settle", "0.3"]
    assert _parse(*words) == NxMConfig(
        recipe="admm",
        pattern={"ffn": "2:4", "default": "4:8"},
        settings={"rho": 0.01},
        include=["query", "ffn"],
        exclude=["ffn_out"],
        on_indivisible="skip",
        warmup=0.1,
        settle=0.3,
    )


def test_an_empty_command_line_gives_the_defaults_and_plain_words_are_plain():
    assert _parse() == NxMConfig()
    assert _parse("--pattern", "1:4", "--recipe", "sr_ste").to_dict() == NxMConfig("sr-ste", "1:4").to_dict()


def test_the_command_line_stands_beside_training_arguments(tmp_path):
    words = ["--output_dir", str(tmp_path), "--max_steps", "3", "--settle", "0.5"]
    arguments, config = HfArgumentParser((TrainingArguments, NxMConfig)).parse_args_into_dataclasses(words)
    assert (arguments.max_steps, config.settle) == (3, 0.5)


def test_a_json_file_gives_the_config_too(tmp_path):
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"recipe": "ste", "pattern": "1:4", "settings": {"refresh": 2}}))
    (config,) = HfArgumentParser(NxMConfig).parse_json_file(str(path))
    assert config == NxMConfig("ste", "1:4", {"refresh": 2})


def test_every_field_of_the_constructor_has_a_help_text():
    fields = [field for field in dataclasses.fields(NxMConfig) if field.init]
    assert len(fields) == 8 and all(field.metadata["help"].endswith(".") for field in fields)
    help_text = HfArgumentParser(NxMConfig).format_help()
    assert all(f"--{field.name}" in help_text for field in fields)
    assert not any(f"--{name}" in help_text for name in ("layers", "density", "nxm_version"))
