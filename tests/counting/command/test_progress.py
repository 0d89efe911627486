"""What long work is at: on a terminal, and nowhere else."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from counting.command.progress import Progress

SCRIPT = Path(__file__).resolve().parents[3] / "model_training_cost_analysis.py"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def screen(written: str) -> str:
    """The line as a terminal shows it after all that was written."""
    cells: list[str] = []
    at = 0
    for character in written:
        if character == "\r":
            at = 0
        else:
            cells[at : at + 1] = [character]
            at += 1
    return "".join(cells).rstrip()


def test_a_line_is_written_over_and_erased(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = Progress()
    progress.show("measuring deepseek_v3 (1 of 2) ...")
    assert screen(terminal.getvalue()) == "measuring deepseek_v3 (1 of 2) ..."
    progress.show("measuring tiny (2 of 2) ...")
    assert screen(terminal.getvalue()) == "measuring tiny (2 of 2) ..."
    progress.erase()
    assert screen(terminal.getvalue()) == ""
    assert "\n" not in terminal.getvalue()
    before = terminal.getvalue()
    progress.erase()
    assert terminal.getvalue() == before


def test_a_line_stays_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    Progress().show("x" * 50)
    assert screen(terminal.getvalue()) == "x" * 19


@pytest.mark.parametrize("stream", [io.StringIO(), None])
def test_nothing_where_there_is_no_terminal(stream: io.StringIO | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    progress = Progress()
    progress.show("measuring")
    progress.erase()
    assert stream is None or stream.getvalue() == ""


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
def test_the_command_shows_it_on_a_terminal(tmp_path: Path) -> None:
    main_end, terminal = os.openpty()
    command = [sys.executable, str(SCRIPT), "--json", "--model_config", "llama_7b", "llama_13b", "--published"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=terminal, cwd=tmp_path, timeout=120, check=True)
    os.close(terminal)
    written = b""
    try:
        while part := os.read(main_end, 65536):
            written += part
    except OSError:  # the other end is closed
        pass
    os.close(main_end)
    text = written.decode()
    for line in ("measuring llama_7b (1 of 2) ...", "measuring llama_13b (2 of 2) ...", "working out DeepSeek-V3 ("):
        assert line in text
    assert screen(text) == ""
    assert done.stdout.startswith(b'{"schema_version":2')
