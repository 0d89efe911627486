"""What several test files need of pytest."""

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from counting import analysis

# One thread in each process, also in those that tests start: several on the same cores slow each other down many times,
# and the order in which a product adds depends on their number. Torch reads this when it is imported.
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def equal_steps_once() -> Iterator[None]:
    """Analyse equal models, settings and layouts once, on whatever clusters they are timed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analysis, "_analyze_native", cache(analysis._analyze_native))
        yield
