"""The default config of every family of transformers: measured exactly, or refused with a true reason in one line."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.family_sweep import REASONS, examine_all, families

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "families.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (measured|refused: [^|]+?) \| (\d+) \|", PAGE, flags=re.MULTILINE)
LONGEST = 500  # characters of a message
IMPORT = "import time, torch, transformers.models.auto.modeling_auto; print(time.process_time())"


@pytest.mark.sweep
def test_every_family_is_measured_exactly_or_refused_in_one_line() -> None:
    """No refusal takes longer than the import of transformers, so that with the import it takes at most twice that."""
    run = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
    import_seconds = float(run.stdout)
    outcomes = examine_all(families())
    for outcome in outcomes:
        if outcome.reason is None:
            assert outcome.parameters == outcome.expected, outcome
            continue
        assert outcome.reason in REASONS, outcome
        assert "\n" not in outcome.message, outcome
        assert len(outcome.message) <= LONGEST, outcome
        assert outcome.seconds <= import_seconds, outcome
    counts = Counter(f"refused: {outcome.reason}" if outcome.reason else "measured" for outcome in outcomes)
    assert counts == {kind: int(number) for kind, number in ROWS}
    assert f"Transformers 5.23 has {len(outcomes)} families" in PAGE
