"""The bundled data: model configs, the GPU catalogue, what was published: the JSON files of the folder `configs/`.

The folder stands at the top of the repository. A wheel holds it as `torch_models/configs` (pyproject.toml maps it), so
that no top-level package named `configs` is installed: it would hide a user's own, or be hidden by it.
"""

from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def bundled_data() -> Traversable:
    """The folder of the bundled JSON files: the installed one, or in a checkout and an editable install `configs/`."""
    installed = files("torch_models") / "configs"
    return installed if installed.is_dir() else REPOSITORY / "configs"
