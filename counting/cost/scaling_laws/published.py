"""The published laws of the table `configs/scaling_laws.json`, by name, and any law by name or file.

To add a law, add an entry with its source to that file; `fit` writes files of the same fields.
"""

import os
from pathlib import Path

import msgspec

from counting.cost.scaling_laws.allocation import allocation_laws
from counting.cost.scaling_laws.law import ScalingLaw
from counting.cost.scaling_laws.law_file import read_law
from torch_models.errors import ArgumentError, ConfigError, show_name
from torch_models.fields.bundled import bundled_data

LAWS = msgspec.json.decode((bundled_data() / "scaling_laws.json").read_bytes(), type=tuple[ScalingLaw, ...])
DEFAULT_LAW = LAWS[0]
SHOWN_BESIDE = "it is shown beside those with a loss"


def find_law(law: str | os.PathLike[str] | ScalingLaw) -> ScalingLaw:
    """The law called so, in upper or lower case, or the one in the file of that path; a law is returned as it is.

    Raises an ArgumentError that lists the known ones, and a UserError for a file that is no law.
    """
    if isinstance(law, ScalingLaw):
        return law
    named = law.strip().lower() if isinstance(law, str) else ""
    for known in LAWS:
        if known.name == named:
            return known
    if isinstance(law, os.PathLike) or (isinstance(law, str) and is_law_file(law)):
        return _own(read_law(law), show_name(os.fspath(law)))
    if named in (one.name for one in allocation_laws()):
        raise ArgumentError("scaling_law", law, f"says only N or D and no loss, so nothing follows it: {SHOWN_BESIDE}")
    names = ", ".join(known.name for known in LAWS)
    raise ArgumentError("scaling_law", law, f"is not known: choose from {names}, or name a file of a law, as law.json")


def is_law_file(name: str) -> bool:
    """Whether `name` is a file's and no law's: it ends in .json, has a folder in it, or is there."""
    if not name.strip() or "\0" in name:
        return False
    try:
        return name.lower().endswith(".json") or os.sep in name or Path(name).is_file()
    except OSError:  # a name that is too long for a file
        return False


def _own(law: ScalingLaw, shown: str) -> ScalingLaw:
    """The law of a file; raises ConfigError if a published law of other constants has its name."""
    published = [known.name for known in LAWS if known != law] + [known.name for known in allocation_laws()]
    if law.name.lower() in published:
        raise ConfigError("name", law.name, "is a published law's, with other constants: give it another", shown)
    return law
