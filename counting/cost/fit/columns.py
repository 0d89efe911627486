"""The columns of a file of runs: which of its names is N, D, C and the loss."""

from collections.abc import Mapping, Sequence

from torch_models.errors import ArgumentError, UserError, show_name

# What a number is -> the names of its column, in small letters and without spaces, hyphens and underscores.
COLUMN_NAMES = {
    "parameters": {"n", "parameters", "params", "modelsize", "modelparameters", "modelparams"}
    | {f"{before}{after}" for before in ("n", "num", "total") for after in ("parameters", "params")},
    "tokens": {"d", "tokens", "tokensseen"}
    | {f"{before}tokens" for before in ("n", "num", "total", "train", "training")},
    "training_flops": {"c", "flop", "flops", "compute", "computebudget", "trainingcompute"}
    | {f"{before}{after}" for before in ("train", "training", "total") for after in ("flop", "flops")},
    "loss": {"l", "loss"}
    | {f"{before}loss" for before in ("final", "val", "validation", "eval", "test", "train", "training")},
}
FITTED_QUANTITIES = tuple(COLUMN_NAMES)
_SIZES = FITTED_QUANTITIES[:3]  # of which two are enough
COMMON = "parameters (N, params), tokens (D), training_flops (C, flops) and loss"


def find_columns(header: Sequence[str], given: Mapping[str, str], where: str, line: int = 1) -> dict[str, int]:
    """What a number is -> the place of its column; `given` maps some to the column's name, others by `COLUMN_NAMES`.

    `line` is that of the header. Raises UserError with the columns that were found, if the loss or two of N, D and C
    have none, or if two columns have the name of one.
    """
    names = [name.strip() for name in header]
    places: dict[str, int] = {}
    for quantity, name in given.items():
        if name not in names:
            rule = f"{where} has no column of that name: it has {_listed(names)}"
            raise ArgumentError("columns", f"{quantity}={name}", rule)
        if names.count(name) > 1:
            raise UserError(f"{where}: line {line}: has the column {show_name(name)} twice")
        places[quantity] = names.index(name)
    taken = set(places.values())
    for quantity, known in COLUMN_NAMES.items():
        if quantity in places:
            continue
        fitting = [place for place, name in enumerate(names) if _plain(name) in known and place not in taken]
        if len(fitting) > 1:
            both = " and ".join(show_name(names[place]) for place in fitting[:2])
            raise UserError(
                f"{where}: line {line}: {both} may both be the {quantity}: say which, as columns {quantity}="
                f"{show_name(names[fitting[0]])}"
            )
        if fitting:
            places[quantity] = fitting[0]
    missing = [quantity for quantity in FITTED_QUANTITIES if quantity not in places]
    if "loss" in missing or len(missing) > 1:
        raise UserError(
            f"{where}: line {line}: has no column for {_needed(missing)}: it has {_listed(names)}; name them {COMMON}, "
            "of N, D and C two or all, or say which is which, as columns parameters=n_params,tokens=seen"
        )
    return places


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character not in " -_")


def _needed(missing: Sequence[str]) -> str:
    """What lacks a column, in words: of two sizes that are missing, one would do."""
    sizes = [quantity for quantity in missing if quantity in _SIZES]
    needed = ["loss"] if "loss" in missing else []
    if len(sizes) == len(_SIZES):
        needed.insert(0, "two of parameters, tokens and training_flops")
    elif len(sizes) > 1:
        needed.insert(0, " or ".join(sizes))
    return " and ".join(needed)


def _listed(names: Sequence[str]) -> str:
    shown = [show_name(name) or "a column without a name" for name in names]
    return ", ".join(shown[:12]) + (f" and {len(shown) - 12} more" if len(shown) > 12 else "")
