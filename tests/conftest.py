"""What several test files need of pytest."""

import os
from pathlib import Path

import pytest

# One thread in each process, also in those that tests start: several on the same cores slow each other down many times,
# and the order in which a product adds depends on their number. Torch reads this when it is imported.
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
