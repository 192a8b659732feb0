"""Options on a command line that all trials share."""

from benchmarks.glue.comparison.options import option_value


def test_an_option_is_found_however_it_is_written():
    arguments = ["--bf16", "--max_steps", "5", "--max-seq-length=64", "--max_steps", "7"]
    assert option_value(arguments, "max_steps") == "7" and option_value(arguments, "max_seq_length") == "64"
    assert option_value(arguments, "bf16") == "true" and option_value(arguments, "seed") is None
