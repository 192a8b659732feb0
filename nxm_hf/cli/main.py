"""The command line `nxm`: a function for each command. To add one, write a function and list it in COMMANDS."""

import argparse
import difflib
import inspect
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, get_args, get_origin

import nxm_hf
from nxm_hf import NxMConfig, analysis, report
from nxm_hf.cli import recipe_guide
from nxm_hf.cli.prune_commands import convert_command, prune_command
from nxm_hf.rewind import rewind
from nxm_hf.storage.inspect import inspect as inspect_model
from nxm_hf.storage.model_files import skeleton
from nxm_hf.storage.verify import verify

Directory = Annotated[str, "a directory that save_model or save_pretrained wrote"]
PatternText = Annotated[str, "what every layer is to hold, as 2:4 (default: what the directory has on record)"]
RecipeText = Annotated[str, "a name of `nxm recipes` (default: admm)"]
Wanted = Annotated[str, "where zeros may stand, as 2:4 (default) or by role as JSON"]
Steps = Annotated[int, "optimizer steps of the training (default: 1000)"]
Settings = Annotated[str, "the recipe's own settings, as JSON"]
Fraction = Annotated[float, "a fraction of training, as in NxMConfig (default: 0, or the recipe's own)"]
Rows = Annotated[int, "the rows of the task to train on"]
Tokens = Annotated[int, "tokens of the example that weighs the layers (default: 128)"]
FinishedRun = Annotated[str, "the output_dir of a training that was done"]
Trained = Annotated[str, "the model that says what is kept: a sparse one, or with --pattern a dense one"]
Early = Annotated[str, "an early checkpoint of the same training, or the model that it began from"]
NewDirectory = Annotated[str, "a directory that is to be made"]
RunDirectories = Annotated[list[str], "the output_dir of a training, or what `nxm prune` wrote; one or several"]


# -- the commands: positional arguments are the user's, keyword arguments are options; the return value is the exit code


def verify_command(dir: Directory, *, pattern: PatternText = "") -> int:
    """Check that every layer holds its pattern, with true +0.0 zeros.

    Exits with 0 when all is well, 1 when there are problems (each is listed), 2 when the directory cannot be read.
    """
    report = verify(_existing(dir), pattern or None)
    print(report)
    return 0 if report.ok else 1


def inspect_command(dir: Directory) -> int:
    """Show layers, roles, shapes and density, and the GPU kernels that fit.

    The model may be sparse or dense. Exits with 0, or with 2 when the directory cannot be read.
    """
    print(inspect_model(_existing(dir)))
    return 0


def recipes_command(*, rows: Rows = 0, pattern: Wanted = "") -> int:
    """List the recipes, and say what to start with.

    Of each it shows settings, defaults and paper; with --rows or --pattern only what to start with for such a task, and
    what that rests on.
    """
    width = shutil.get_terminal_size().columns
    print(recipe_guide.advice(width, rows, pattern or "2:4") if rows or pattern else recipe_guide.guide(width))
    return 0


def flops_command(
    run_dir: FinishedRun = "",
    *,
    model: Directory = "",
    recipe: RecipeText = "",
    pattern: Wanted = "",
    steps: Steps = 0,
    settings: Settings = "",
    warmup: Fraction = 0.0,
    settle: Fraction = 0.0,
    tokens: Tokens = 128,
) -> int:
    """Show what a recipe costs in training FLOPs, before or after it runs.

    Give --model and a recipe to plan a training, or the directory of one to account for what it has done. Exits with
    0, or with 2 when a directory cannot be read or the recipe does not fit the model.
    """
    if bool(run_dir) == bool(model):
        raise ValueError("Give --model DIR to plan a training, or RUN_DIR, the output_dir of one that was done.")
    if model:
        config = NxMConfig(recipe or "admm", pattern or "2:4", settings, warmup=warmup, settle=settle)
        print(analysis.training_flops(skeleton(_existing(model)), config, steps or 1000, tokens=tokens))
    elif any((recipe, pattern, steps, settings, warmup, settle)):
        raise ValueError(
            f"{run_dir} has its recipe and steps on record; only --tokens goes with it. Leave out the rest."
        )
    else:
        print(report.cost(report.read_run(_existing(run_dir)), tokens))
    return 0


def rewind_command(trained: Trained, checkpoint: Early, out: NewDirectory, *, pattern: PatternText = "") -> int:
    """Put the mask of a trained model on the weights of its beginning.

    That is a lottery ticket: train it with NxMTrainer(model=...) and no sparsity=, which keeps the mask. Exits with 0,
    or with 2 when a directory cannot be read or the two are not of one training.
    """
    print(rewind(_existing(trained), _existing(checkpoint), out, pattern or None))
    return 0


def report_command(run_dir: RunDirectories) -> int:
    """Draw a training run or a pruning, or several, as one HTML page.

    Writes report.html into the first directory, and with matplotlib the charts as PNG into its report/. What
    AnalysisCallback recorded is drawn too. Exits with 0, or with 2 when a directory cannot be read.
    """
    page, *pictures = report.write_report([_existing(dir) for dir in run_dir])
    print(f"{page}{f' and {len(pictures)} pictures in {pictures[0].parent}' if pictures else ''}")
    return 0


COMMANDS = (
    *(verify_command, inspect_command, recipes_command, flops_command),
    *(prune_command, convert_command, rewind_command, report_command),
)


# -- what they are made with ---------------------------------------------------------------------------------------


def _existing(dir: str) -> str:
    """The directory, or an error: a name that is no directory here would otherwise be looked for on the Hub."""
    if not Path(dir).is_dir():
        is_file = "is a file; a directory is needed" if Path(dir).exists() else "does not exist"
        raise FileNotFoundError(f"{dir} {is_file}.")
    return dir


class _Parser(argparse.ArgumentParser):
    """Errors in one line; a misspelled option is answered with the right one."""

    options: tuple[str, ...] = ()

    def error(self, message: str):
        wrong = [word for word in message.split() if word.startswith("--") and word not in self.options]
        self.exit(2, f"{self.prog}: {message}.{_hint(wrong, self.options)} See {self.prog} --help.\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    commands = {_name(function): function for function in COMMANDS}
    try:
        if not arguments or arguments[0].startswith("-"):
            _overview(commands).parse_args(arguments or ["--help"])
        elif arguments[0] in commands:
            given = vars(_parser(commands[arguments[0]]).parse_args(arguments[1:]))
            return _run(commands[arguments[0]], given)
    except SystemExit as end:  # argparse has said why
        return end.code if arguments else 2
    known = f"the commands are {', '.join(commands)}.{_hint(arguments[:1], commands)}"
    return _complain("nxm", f"There is no command {arguments[0]!r}; {known}")


def _overview(commands: dict[str, Callable[..., int]]) -> _Parser:
    """The parser of `nxm` alone: --version and --help."""
    width = max(map(len, commands)) + 2
    lines = [f"  {name:{width}}{inspect.getdoc(function).splitlines()[0]}" for name, function in commands.items()]
    whole = _Parser(
        prog="nxm",
        usage="nxm [--help] [--version] COMMAND ...",
        description="Prune models, look at sparse ones, check them, and plan a training.",
        epilog="\n".join(["commands:", *lines, "", "`nxm COMMAND --help` says more of each."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.add_argument("--version", action="version", version=f"nxm_hf {nxm_hf.__version__}")
    whole.options = ("--version", "--help")
    return whole


def _parser(function: Callable[..., int]) -> _Parser:
    """The parser of a command, from its signature and docstring."""
    summary, _, more = inspect.getdoc(function).partition("\n")
    one = _Parser(prog=f"nxm {_name(function)}", description=f"{summary}{more}", allow_abbrev=False)
    parameters = inspect.signature(function).parameters
    options = {name: f"--{name.replace('_', '-')}" for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    for name, parameter in parameters.items():
        kind, help = get_args(parameter.annotation)
        more = {"dest": name, **_default(parameter)} if name in options else {}
        if name not in options and parameter.default is not parameter.empty:
            more = {"nargs": "?", "default": parameter.default}
        if get_origin(kind) is list:
            kind, more["nargs"] = get_args(kind)[0], "+"
        one.add_argument(options.get(name, name), type=kind, metavar=name.upper(), help=help, **more)
    one.options = (*options.values(), "--help")
    return one


def _default(parameter: inspect.Parameter) -> dict:
    return {"required": True} if parameter.default is parameter.empty else {"default": parameter.default}


def _name(function: Callable[..., int]) -> str:
    return function.__name__.removesuffix("_command").replace("_", "-")


def _hint(wrong: Sequence[str], right: Iterable[str]) -> str:
    near = difflib.get_close_matches(wrong[0].lower(), list(right), n=1, cutoff=0.5) if wrong else []
    return f" Did you mean {near[0]}?" if near else ""


def _run(command: Callable[..., int], given: dict) -> int:
    try:
        code = command(**given)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader, as in `| head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, ValueError, ImportError) as error:
        return _complain(f"nxm {_name(command)}", " ".join(str(error).split()))


def _complain(who: str, what: str) -> int:
    print(f"{who}: {what}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
