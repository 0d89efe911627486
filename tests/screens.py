"""What the command prints of results, and how tests read it."""

import pytest

from counting.report import Results, print_results


def printed(capsys: pytest.CaptureFixture[str], results: Results, *, width: int = 80) -> str:
    """The first screen alone, without the plain lines; each paragraph on a line of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(width))
        print_results(results, None, details=False, proof=False)
    return capsys.readouterr().out


def words(text: str) -> str:
    return " ".join(text.split())
