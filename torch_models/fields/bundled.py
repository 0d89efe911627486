"""The bundled data, JSON files of the folder `configs/`: model configs, the GPU catalogue, published figures.

The folder is at the top of the repository. A wheel contains it as `torch_models/configs` (pyproject.toml maps it):
a top-level package named `configs` could conflict with one of the user's.
"""

from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def bundled_data() -> Traversable:
    """Return the folder of the bundled JSON files; in a checkout or an editable install it is `configs/`."""
    installed = files("torch_models") / "configs"
    return installed if installed.is_dir() else REPOSITORY / "configs"
