from pathlib import Path

import pytest

from counting.command.output_file import write_whole
from torch_models.errors import UserError


@pytest.mark.parametrize("content", ["words\n", b"\x80\x04\n\x00"])
def test_text_and_bytes_are_written_as_they_are(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "file"
    write_whole(str(path), content, overwrite=False)
    assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_there_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")
    with pytest.raises(UserError, match="exists already"):
        write_whole(str(path), b"after", overwrite=False)
    assert path.read_bytes() == b"before"
    write_whole(str(path), b"after", overwrite=True)
    assert path.read_bytes() == b"after"
