"""The phases of a training: the steps at which pruning begins and at which the mask is frozen."""

from nxm_hf.config import NxMConfig
from nxm_hf.methods.schedules import Clock
from nxm_hf.patterns import Dense
from nxm_hf.report.run import Run

PRUNING, FROZEN = "pruning begins", "mask frozen"


def config_of(run: Run) -> NxMConfig | None:
    """Return the config of a run, or None if it has none that this version can read.

    Args:
        run: The run.
    """
    try:
        return NxMConfig.from_dict(run.config) if run.config else None
    except (TypeError, ValueError, LookupError):
        return None  # of a method object, or of a newer version


def phase_marks(run: Run) -> list[tuple[int, str]]:
    """Return the steps at which a phase begins, each with its name. Steps that are not reached are left out.

    Args:
        run: The run.
    """
    config, total = config_of(run), int(run.state.get("max_steps") or 0)
    if config is None or total <= 0:
        return []
    pattern = next((each for each in config.patterns().values() if not isinstance(each, Dense)), None)
    if pattern is None:
        return []
    begin, end = config.method(pattern).window(Clock(0, total))
    marks = ([(begin, PRUNING)] if begin else []) + ([(end, FROZEN)] if end < total else [])
    return [(step, label) for step, label in marks if step <= run.steps]
