"""The bundled data, JSON files of the folder `configs/`: model configs, the GPU catalogue, published figures.

The folder is at the top of the repository. A wheel contains it as `torch_models/configs` (pyproject.toml maps it):
a top-level package named `configs` could conflict with one of the user's.
"""

import re
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def bundled_data() -> Traversable:
    """Return the folder of the bundled JSON files; in a checkout or an editable install it is `configs/`."""
    installed = files("torch_models") / "configs"
    return installed if installed.is_dir() else REPOSITORY / "configs"


@cache
def published_name(name: str) -> str:
    """The name under which the bundled config `name` is published, as deepseek_v3 -> DeepSeek-V3; else `name` itself.

    It is that of the repository that the config's `_source` names.
    """
    if not re.fullmatch(r"\w+", name):
        return name
    file = bundled_data() / f"{name}_config.json"
    found = (
        re.search(r"config\.json of [\w.-]+/([\w.-]+)", file.read_text(encoding="utf-8")) if file.is_file() else None
    )
    return found.group(1) if found else name
