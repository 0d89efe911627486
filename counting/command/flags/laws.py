"""The laws that --scaling_law names: the one that the budget follows, and those that are shown beside it."""

from pathlib import Path
from typing import NamedTuple

from counting.cost.scaling_laws import LAWS, ScalingLaw, find_law
from counting.cost.scaling_laws.allocation import AllocationLaw, allocation_laws
from counting.cost.scaling_laws.published import is_law_file
from torch_models.errors import ArgumentError, UserError, show_value

ALL = "all"


class ChosenLaws(NamedTuple):
    """What --scaling_law says."""

    followed: ScalingLaw
    beside: tuple[ScalingLaw | AllocationLaw, ...]  # all that are named; empty if one is


def parse_laws(text: str) -> ChosenLaws:
    """`besiroglu-2024`, `law.json`, `all`, or several of these with commas between them; the first is followed.

    Of `all`, that is the default law. A law that says only N or D is never followed. Raises UserError for an unknown
    name, for a file that is no law, and where no law predicts a loss.
    """
    names = _names(text)
    laws: list[ScalingLaw | AllocationLaw] = []
    for name in names:
        if name.lower() == ALL:
            laws += [*LAWS, *allocation_laws()]
        else:
            beside = [law for law in allocation_laws() if law.name == name.lower()] if len(names) > 1 else []
            laws += beside or [_found(name)]
    losses = [law for law in laws if isinstance(law, ScalingLaw)]
    called = {law.name: law for law in losses}
    for law in losses:
        if law != called[law.name]:
            raise UserError(
                f"--scaling_law {show_value(text)}: two laws are called {law.name}: give one of them another name"
            )
    followed = losses[0] if losses else find_law(names[0])  # which says that nothing follows such a law
    return ChosenLaws(followed, tuple(laws) if len(laws) > 1 else ())


def _found(name: str) -> ScalingLaw:
    """The law of that name or file; raises UserError, for an unknown name with all that the flag takes."""
    only = [law.name for law in allocation_laws()]
    known = [*(law.name for law in LAWS), *only]
    if name.strip().lower() not in known and not is_law_file(name):
        names = f"{', '.join(law.name for law in LAWS)}, {ALL}, or name a file of a law, as law.json"
        rule = f"is not known: choose from {names}; beside one of these also {', '.join(only)}"
        raise ArgumentError("scaling_law", name, rule)
    return find_law(name)


def law_files(text: str | None) -> list[str]:
    """Those of the laws that are files."""
    return [] if text is None else [name for name in _names(text) if _is_file(name)]


def _names(text: str) -> list[str]:
    return [text] if _is_file(text) else [name.strip() for name in text.split(",")]


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):  # too long for a file's name, or with a null byte
        return False
