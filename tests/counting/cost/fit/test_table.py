"""Runs in a file: names of columns, what follows from C = 6 N D, and every error in one line."""

import os
from pathlib import Path

import msgspec
import pytest

from counting.cost.fit import read_runs
from counting.cost.fit.runs import check_runs
from counting.cost.fit.table import MAX_RUNS_BYTES
from tests.counting.cost.fit.known_law import as_csv, runs_of
from torch_models.errors import UserError

MISSING = (
    "; name them parameters (N, params), tokens (D), training_flops (C, flops) and loss, of N, D and C two or all, or "
    "say which is which, as columns parameters=n_params,tokens=seen"
)
NO = "line 1: has no column for "
PLAIN = "must be a number above 0 in plain digits"


def write(folder: Path, *lines: str) -> str:
    (folder / "runs.csv").write_text("\n".join(lines) + "\n")
    return "runs.csv"


@pytest.mark.parametrize(
    "header",
    [
        "parameters,tokens,loss",
        "N,D,L",
        "n_params,train_tokens,val_loss",
        "Model Size,Training-Tokens,Final Loss",
        " params , tokens_seen , loss ",
        "total parameters,num_tokens,validation_loss",
    ],
)
def test_columns_by_their_common_names(folder: Path, header: str) -> None:
    (run,) = read_runs(write(folder, header, "70e6,1.4e9,3.41")).runs
    assert (run.line, run.parameters, run.tokens, run.loss) == (2, 70e6, 1.4e9, 3.41)
    assert run.training_flops == 6 * 70e6 * 1.4e9


@pytest.mark.parametrize(
    ("header", "values", "derived"),
    [
        ("N,D,loss", "2e8,5e9,3", "training_flops = 6 × parameters × tokens"),
        ("N,C,loss", "2e8,6e18,3", "tokens = training_flops / (6 × parameters)"),
        ("flops,tokens,loss", "6e18,5e9,3", "parameters = training_flops / (6 × tokens)"),
        ("compute_budget,tokens,n,loss", "6e18,5e9,2e8,3", None),
    ],
)
def test_the_third_of_n_d_and_c_follows(folder: Path, header: str, values: str, derived: str | None) -> None:
    """6 x 2e8 x 5e9 = 6e18."""
    file = read_runs(write(folder, header, values))
    (run,) = file.runs
    assert (run.parameters, run.tokens, run.training_flops) == pytest.approx((2e8, 5e9, 6e18))
    assert file.derived == derived


def test_flops_of_the_file_are_kept_where_they_are_not_6_n_d(folder: Path) -> None:
    assert read_runs(write(folder, "N,D,C,loss", "2e8,5e9,7e18,3")).runs[0].training_flops == 7e18


def test_columns_that_are_named(folder: Path) -> None:
    path = write(folder, "run,size,seen,loss,val_loss", "a,2e8,5e9,3,3.1", "", "b,3e8,6e9,2.9,3.0")
    file = read_runs(path, {"parameters": "size", "tokens": "seen", "loss": "val_loss"})
    assert [(run.line, run.parameters, run.tokens, run.loss) for run in file.runs] == [
        (2, 2e8, 5e9, 3.1),
        (4, 3e8, 6e9, 3.0),
    ]
    assert file.columns == {"parameters": "size", "tokens": "seen", "loss": "val_loss"}


def test_line_ends_and_marks_of_other_systems(folder: Path) -> None:
    (folder / "runs.csv").write_bytes(b"\xef\xbb\xbfN,D,loss\r\n2e8,5e9,3\r\n")
    assert read_runs("runs.csv").runs[0].parameters == 2e8


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        (["n,seen,val", "1,2,3"], f"{NO}tokens or training_flops and loss: it has n, seen, val{MISSING}"),
        (["a,loss", "1,2"], f"{NO}two of parameters, tokens and training_flops: it has a, loss{MISSING}"),
        (["n,d", "1,2"], f"{NO}loss: it has n, d{MISSING}"),
        (
            ["n,d,loss,val_loss", "1,2,3,4"],
            "line 1: loss and val_loss may both be the loss: say which, as columns loss=loss",
        ),
        (["n;d;loss", "1;2;3"], "line 1: columns must be separated by commas, but are by 'n;d;loss'"),
        (["n,d,loss"], "has no runs below its columns"),
        (["n,d,loss", "1e7,1e9"], "line 2: has 2 values in 3 columns"),
        (["n,d,loss", "1e7,1e9,3.1", "70M,1e9,3.4"], f"line 3: n = '70M': {PLAIN}, as 70e6"),
        (["n,d,loss", "1e7,1_000,3.1"], "line 2: d = '1_000': must be a number above 0 in plain digits, as 1.4e9"),
        (["n,d,loss", "1e7,1e9,-3"], "line 2: loss = '-3': must be a loss above 0 in plain digits, as 3.41"),
        (["n,d,loss", "1e7,1e9,nan"], "line 2: loss = 'nan': must be a loss above 0 in plain digits, as 3.41"),
        (["n,d,loss", "1e7,1e9,inf"], "line 2: loss = 'inf': must be a loss above 0 in plain digits, as 3.41"),
        (["n,d,loss", "1e7,1e9,"], "line 2: loss = '': must be a loss above 0 in plain digits, as 3.41"),
        (["n,d,loss", "1e300,1e9,3"], "line 2: n = '1e300': must be at most 1e+36"),
        (["", "", "n,d", "1,2"], f"{NO}loss: it has n, d{MISSING}".replace("line 1", "line 3")),
        (["n,d,loss", *["1e7,1e9,3"] * 2001], "line 2002: a file has at most 2,000 runs: leave some out"),
        (["n,c,loss", "1e7,0,3"], "line 2: c = '0': must be a number above 0 in plain digits, as 6e18"),
        (["n,d,loss", '1e7,1e9,"3'], "line 2: not comma-separated values: unexpected end of data"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file(folder: Path, lines: list[str], error: str) -> None:
    with pytest.raises(UserError) as raised:
        read_runs(write(folder, *lines))
    assert str(raised.value) == f"runs.csv: {error}"


@pytest.mark.parametrize(
    "text",
    [
        "N,D,loss\r\n2e8,5e9,3\r\n",
        "N,D,loss\r2e8,5e9,3\r",
        '"N","D","loss"\n"2e8","5e9","3"\n',
        " N , D , loss \n 2e8 , 5e9 , 3 \n",
        "\n,,\nN,D,loss\n\n2e8,5e9,3\n,,\n",
    ],
)
def test_spellings_of_one_file(folder: Path, text: str) -> None:
    (folder / "runs.csv").write_bytes(text.encode())
    assert [(run.parameters, run.tokens, run.loss) for run in read_runs("runs.csv").runs] == [(2e8, 5e9, 3)]


def test_pipes_are_not_read(folder: Path) -> None:
    os.mkfifo("pipe")
    for name, error in {
        "pipe": "pipes and devices are not read: name a file of runs",
        "/dev/null": "pipes and devices are not read: name a file of runs",
        "-": "standard input is not read: write the runs to a file, and name it",
    }.items():
        with pytest.raises(UserError, match=f"^{name}: {error}$"):
            read_runs(name)


def test_files_that_are_none(folder: Path) -> None:
    (folder / "empty.csv").write_text("\n")
    (folder / "latin.csv").write_bytes("n,d,loss,größe".encode("latin-1"))
    (folder / "long.csv").write_text("n" * (MAX_RUNS_BYTES + 1))
    for name, error in {
        "none.csv": "no such file",
        ".": "must be a file of runs",
        "empty.csv": "is empty: its first line must name the columns, as parameters,tokens,loss",
        "latin.csv": "is not text in UTF-8: save it as comma-separated values in that encoding",
        "long.csv": "a file of runs has at most 5,000,000 bytes and 2,000 runs",
    }.items():
        with pytest.raises(UserError, match=f"^{name}: {error}$"):
            read_runs(name)


def test_a_named_column_that_is_not_there(folder: Path) -> None:
    path = write(folder, "n,d,loss", "1,2,3")
    with pytest.raises(
        UserError, match=r"^columns = 'tokens=seen': runs.csv has no column of that name: it has n, d, loss$"
    ):
        read_runs(path, {"tokens": "seen"})


def test_runs_that_determine_no_law(folder: Path) -> None:
    runs = runs_of()
    twice = [*runs, runs[3]]
    path = write(folder, *as_csv(twice).splitlines())
    with pytest.raises(UserError, match=r"^line 26: repeats line 5, number for number: give each run once; two runs"):
        check_runs(read_runs(path).runs)
    with pytest.raises(UserError, match=r"^7 runs are too few: five constants and their residuals need at least 8$"):
        check_runs(runs[:7])
    with pytest.raises(
        UserError, match=r"^all 10 runs are of one budget, 1e\+20 FLOPs: more parameters are always fewer"
    ):
        check_runs(runs_of(budgets=(1e20,), sizes=10))
    with pytest.raises(
        UserError, match=r"^the runs have 2 different model sizes \(1e\+07 and 1e\+08\): a coefficient, an"
    ):
        check_runs(
            [
                type(run)(
                    line=run.line,
                    parameters=1e7 if run.line % 2 else 1e8,
                    tokens=run.tokens,
                    training_flops=run.training_flops,
                    loss=run.loss,
                )
                for run in runs
            ]
        )
    check_runs(runs)
    with pytest.raises(UserError, match=r"^all 24 runs have the same loss, 3: nothing in it depends on N or D$"):
        check_runs([msgspec.structs.replace(run, loss=3.0) for run in runs])
