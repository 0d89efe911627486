"""Measured steps in a file of comma-separated values: what is read, and every error of one line."""

import json
from pathlib import Path

import pytest

from counting.command.calibrate.rows import COLUMNS, MAX_ROWS_BYTES, read_rows
from counting.cost.hardware import find_gpu
from counting.setup import Setup
from tests.shrunken import LLAMA
from torch_models.errors import UserError
from torch_models.layout import Layout

HEADER = ",".join(COLUMNS)
ROW = "tiny,32,H100,1,,1,1,none,eager,0.5"
SPREAD = 'tiny,64,h100,4,"fsdp=2,tp=2",2,4,full,compiled,1.5'


@pytest.fixture
def file(folder: Path) -> Path:
    (folder / "tiny").write_text(json.dumps(LLAMA))
    return folder / "rows.csv"


def test_a_row_says_what_flags_would(file: Path) -> None:
    file.write_text(f"{HEADER}\n{ROW}\n\n{SPREAD}\n")
    gpu, (one, spread), files = read_rows("rows.csv", None)
    assert gpu == find_gpu("H100")
    assert files[0] == "tiny"
    assert (one.where, one.layout, one.seconds) == ("rows.csv: row 1 (line 2)", None, 0.5)
    assert one.setup == Setup(sequence_length=32, micro_batches=1)
    assert (spread.where, spread.seconds) == ("rows.csv: row 2 (line 4)", 1.5)
    assert spread.layout == Layout(num_gpus=4, fsdp=2, tp=2)
    assert spread.setup == Setup(
        sequence_length=64, micro_batch_size=2, micro_batches=4, recompute="full", execution="compiled"
    )
    assert one.model is spread.model


def test_columns_may_be_more_and_in_any_order(file: Path) -> None:
    further = f"power_watts,precision,optimizer,loss_chunk,clip_gradients,{HEADER}"
    file.write_text(f"{further}\n500,fp32,sgd,16,on,{ROW}\n,,,,,{ROW}\n")
    _, (one, other), _ = read_rows("rows.csv", None)
    assert (one.power_watts, other.power_watts) == (500, None)
    assert one.setup == Setup(
        sequence_length=32, micro_batches=1, precision="fp32", optimizer="sgd", loss_chunk=16, clip_gradients=True
    )
    assert other.setup == Setup(sequence_length=32, micro_batches=1)


@pytest.mark.parametrize("before", ["\N{ZERO WIDTH NO-BREAK SPACE}", "", " "])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_files_of_spreadsheets_are_read(before: str, end: str, file: Path) -> None:
    file.write_bytes(f"{before}{HEADER}{end}{ROW}{end}".encode())
    assert len(read_rows("rows.csv", None).steps) == 1


def row(**changes: str) -> str:
    values = dict(zip(COLUMNS, ROW.split(","), strict=True)) | changes
    return ",".join(f'"{value}"' if "," in value else value for value in values.values())


ERRORS = {
    "": f"rows.csv: is empty: its first line must be {HEADER}",
    " \n\n": f"rows.csv: is empty: its first line must be {HEADER}",
    HEADER: "rows.csv: has no rows below its columns",
    f"{HEADER}\n,,,,,,,,,\n": "rows.csv: has no rows below its columns",
    HEADER.replace(",seconds", "").replace("layout,", ""): "rows.csv: line 1: lacks layout, seconds: the columns are "
    + HEADER.replace(",", ", "),
    f"{HEADER},speed\n": "rows.csv: line 1: 'speed' is no column: the columns are "
    f"{HEADER.replace(',', ', ')}, and may be precision, optimizer, loss_chunk, clip_gradients, power_watts",
    f"{HEADER},seconds\n": "rows.csv: line 1: has the column seconds twice",
    HEADER.replace(",", ";"): "rows.csv: line 1: columns must be separated by commas, but are by "
    "'model_config;seq_len;gpu;num_gpus;layout;micro_batch_size;…",
    f"{HEADER}\ntiny,32,H100,4,fsdp=2,tp=2,1,1,none,eager,0.5\n": "rows.csv: row 1 (line 2): has 11 values in 10 "
    "columns; put a layout with commas between quotation marks",
    f"{HEADER}\ntiny,32\n": "rows.csv: row 1 (line 2): has 2 values in 10 columns",
    f'{HEADER}\n"tiny"x,32\n': "rows.csv: line 2: not comma-separated values: ',' expected after '\"'",
}
ROW_ERRORS = {
    "seconds": {
        "": "seconds = '': must have a value",
        "0": "seconds = '0': must be a number of seconds above 0, at most 1e+06",
        "nan": "seconds = 'nan': must be a number of seconds above 0, at most 1e+06",
        "1.5s": "seconds = '1.5s': must be a number of seconds above 0, at most 1e+06",
        "-1": "seconds = '-1': must be a number of seconds above 0, at most 1e+06",
        "1e9": "seconds = '1e9': must be a number of seconds above 0, at most 1e+06",
    },
    "model_config": {"none_such": None},
    "seq_len": {
        "4k": "seq_len = '4k': must be a whole number",
        "0": "seq_len = 0: must be a whole number of tokens from 1 to 16777216",
    },
    "gpu": {"H101": None},
    "num_gpus": {
        "8": "layout = '': must say how the step is spread over 8 GPUs, as fsdp=8; dp=N is data parallel",
        "0": None,
    },
    "layout": {
        "fsdp": "layout = 'fsdp': must be pairs of axis and number separated by commas, as fsdp=32,tp=8",
        "tp=0": None,
        "tp=x": "layout = 'tp=x': tp = 'x': must be a whole number",
        "sp=1": "layout = 'sp=1': sp = '1': must be on or off",
        "zero=4": "layout = 'zero=4': zero = 4: must be one of 1, 2, 3",
    },
    "micro_batch_size": {"x": "micro_batch_size = 'x': must be a whole number"},
    "micro_batches": {"1.5": "micro_batches = '1.5': must be a whole number"},
    "recompute": {"some": None},
    "execution": {"fast": "execution = 'fast': must be one of eager, compiled"},
}


@pytest.mark.parametrize("text", ERRORS, ids=range(len(ERRORS)))
def test_error_of_a_file(text: str, file: Path) -> None:
    file.write_text(text)
    with pytest.raises(UserError) as error:
        read_rows("rows.csv", None)
    assert str(error.value) == ERRORS[text]


@pytest.mark.parametrize(("column", "value"), [(column, value) for column, row in ROW_ERRORS.items() for value in row])
def test_error_of_a_row_names_file_row_column_value_and_rule(column: str, value: str, file: Path) -> None:
    file.write_text(f"{HEADER}\n{ROW}\n{row(**{column: value})}\n")
    with pytest.raises(UserError) as error:
        read_rows("rows.csv", None)
    text, expected = str(error.value), ROW_ERRORS[column][value]
    assert text.startswith("rows.csv: row 2 (line 3): ")
    assert "\n" not in text
    if expected is None:  # another file's rule, which lists what is known
        assert column in text.removeprefix("rows.csv: row 2 (line 3): ").partition(":")[0]
        assert value in text
    else:
        assert text == f"rows.csv: row 2 (line 3): {expected}"


def test_rows_of_several_gpus_are_refused(file: Path) -> None:
    file.write_text(f"{HEADER}\n{ROW}\n{row(gpu='A100')}\n")
    with pytest.raises(UserError) as error:
        read_rows("rows.csv", None)
    assert str(error.value) == (
        "rows.csv: row 2 (line 3): gpu = 'A100': is another GPU than that of row 1 (line 2), H100: one scale is of one "
        "cluster; give a file for each"
    )


def test_the_gpu_of_a_cluster_that_is_given_counts(file: Path) -> None:
    file.write_text(f"{HEADER}\n{ROW}\n")
    assert read_rows("rows.csv", find_gpu("H100")).gpu.name == "H100"
    with pytest.raises(UserError) as error:
        read_rows("rows.csv", find_gpu("B200"))
    assert str(error.value) == "rows.csv: row 1 (line 2): gpu = 'H100': is not that of the cluster, B200"


def test_a_family_without_modules_here_has_no_step(file: Path) -> None:
    (file.parent / "tiny").write_text(json.dumps({"model_type": "phi3", "architectures": ["Phi3ForCausalLM"]}))
    file.write_text(f"{HEADER}\n{ROW}\n")
    with pytest.raises(UserError) as error:
        read_rows("rows.csv", None)
    assert str(error.value) == (
        "rows.csv: row 1 (line 2): model_config: tiny: phi3 goes through transformers, and no step of it is estimated"
    )


def test_a_file_that_cannot_be_read_is_named(file: Path) -> None:
    for path, rule in (("none.csv", "no such file"), (".", "must be a file of rows")):
        with pytest.raises(UserError) as error:
            read_rows(path, None)
        assert str(error.value) == f"{path}: {rule}"
    for content, rule in (
        (HEADER.encode("utf-16"), "is not text in UTF-8: save it as comma-separated values in that encoding"),
        (b"x" * (MAX_ROWS_BYTES + 1), f"a file of rows has at most {MAX_ROWS_BYTES} bytes"),
    ):
        file.write_bytes(content)
        with pytest.raises(UserError) as error:
            read_rows("rows.csv", None)
        assert str(error.value) == f"rows.csv: {rule}"
