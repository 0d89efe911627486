"""Files of rows: their numbers are those of the JSON document, to the digit, and nothing is half written."""

import csv
import io
import json
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from counting.analysis import Analysis
from counting.calibration.found import FoundMachine
from counting.calibration.steps import CalibratedCluster
from counting.command import output_file
from counting.command.flags.parser import read_flags
from counting.command.jobs.outputs import check_rows_and_output, csv_names, write_rows_and_output
from counting.cost.beyond_compute import BeyondCompute
from counting.cost.budget import BudgetPlan
from counting.cost.budget_on_model import BudgetOnModel
from counting.cost.design import Design
from counting.cost.fit import FittedLaw
from counting.cost.scaling_laws.side_by_side import LawsSideBySide
from counting.published.claim import Claim
from counting.published.memory import ExaminedMemory
from counting.published.runs import ExaminedRun
from counting.published.throughput import Throughput
from counting.records import TidyRow
from counting.report import Results
from counting.report.export.comma_separated import csv_files, csv_text, rows_by_file
from model_training_cost_analysis import main
from tests.counting.records.made_up import made_up, numbers_in, numbers_of, without_fields
from tests.shrunken import DEEPSEEK_V3, LLAMA
from torch_models.errors import UserError

HEADINGS = ["scope", "component", "quantity", "value", "unit", "convention"]


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("configs")
    for name, fields in (("one", DEEPSEEK_V3), ("two", LLAMA)):
        (folder / f"{name}.json").write_text(json.dumps(fields))
    return str(folder / "one.json"), str(folder / "two.json")


def values_in(path: Path) -> list[float]:
    """The numbers of a file in order of size, as exact as they are written."""
    headings, *rows = csv.reader(io.StringIO(path.read_text()))
    assert headings == HEADINGS
    assert all(len(row) == len(HEADINGS) for row in rows)
    return sorted(int(row[3]) if row[3].lstrip("-").isdigit() else float(row[3]) for row in rows)


def run_and_budget(configs: tuple[str, str]) -> list[str]:
    model, *_ = configs
    run = ["--gpus", "H100,A100", "--tokens", "3T", "--num_gpus", "7", "--seq_len", "16"]
    beyond = ["--unique_tokens", "1B", "--inference_tokens", "2T", "--scaling_law", "all"]
    return ["--model_config", model, *run, "--training_budget", "5M", *beyond]


def comparison(configs: tuple[str, str]) -> list[str]:
    return ["--model_config", *configs, "--seq_len", "16", "--gpus", "H100", "--tokens", "2T", "--compare"]


@pytest.mark.parametrize("flags_of", [run_and_budget, comparison])
def test_numbers_are_those_of_the_document_to_the_digit(
    flags_of: Any, configs: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    flags = [*flags_of(configs), "--csv", str(folder)]
    assert main([*flags, "--json"]) == 0
    captured = capsys.readouterr()
    document = without_fields(json.loads(captured.out), ("agreement", "bootstrap"))
    results = {key: document[key] for key in ("analyses", "runs", "comparison", "budget", "published", "claim")}
    written = {f"{key}.csv": sorted(numbers_in(content)) for key, content in results.items() if content}
    assert {path.name: values_in(path) for path in folder.iterdir()} == written
    assert len(written) == 3 if "--compare" not in flags else len(written) == 2
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


def test_witnesses_are_a_file_with_proof(
    configs: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model_config", configs[1], "--proof", "--csv", str(tmp_path / "out"), "--json"]
    assert main(flags) == 0
    checks = json.loads(capsys.readouterr().out)["analyses"][0]["agreement"]["checks"]
    witnesses = [value for check in checks for value in check["values"].values()]
    assert values_in(tmp_path / "out" / "witnesses.csv") == sorted(witnesses)


@pytest.mark.parametrize(
    ("flags", "results"),
    [
        (["--published"], Results(published=[made_up(ExaminedRun)])),
        (["--published", "memory"], Results(published_memory=[made_up(ExaminedMemory)])),
        (["--published", "throughput"], Results(published_throughput=made_up(Throughput))),
        (["--claim"], Results(claim=made_up(Claim))),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_names_of_files_are_known_before_anything_is_measured(flags: list[str], results: Results) -> None:
    assert csv_names(read_flags([*flags, "--csv", "out"])) == list(csv_files(results))


def test_witnesses_of_several_models_name_theirs() -> None:
    one = replace(made_up(Analysis), name="one")
    two = replace(one, name="two")
    scopes = {
        number: [row.scope for row in rows_by_file(Results(analyses=analyses), proof=True)["witnesses"]]
        for number, analyses in ((1, [one]), (2, [one, two]))
    }
    of_one = [row.scope for row in one.agreement.to_records()]
    assert of_one
    assert scopes[1] == of_one
    assert scopes[2] == [f"{name} / {scope}" for name in ("one", "two") for scope in of_one]


def test_all_of_a_budget_is_one_file() -> None:
    """As the names that are checked early say: the laws, what is spent, what is beyond, and the design too."""
    parts = {
        "budget": made_up(BudgetPlan),
        "laws": made_up(LawsSideBySide),
        "spent": [made_up(BudgetOnModel)],
        "beyond": made_up(BeyondCompute),
        "design": made_up(Design),
    }
    flags = ["--training_budget", "5M", "--design", "d.json", "--unique_tokens", "1B", "--csv", "out"]
    files = rows_by_file(Results(**parts))
    assert [f"{name}.csv" for name in files] == csv_names(read_flags(flags)) == ["budget.csv"]
    for part in parts.values():
        for each in part if isinstance(part, list) else [part]:
            assert {*each.to_records()} <= {*files["budget"]}


def test_each_kind_of_result_has_rows() -> None:
    runs = made_up(ExaminedRun), made_up(ExaminedRun)
    rows = rows_by_file(Results(published=runs))["published"]
    assert rows == [row for run in runs for row in run.to_records()]


def test_commas_quotes_and_line_ends_in_a_name_stay_in_their_cell() -> None:
    row = TidyRow('a, "b"\nc', "", "parameters", 2**70, "parameter", "Counted, as ever.")
    text = csv_text([row, row._replace(scope="d", value=0.1)])
    assert text.startswith('scope,component,quantity,value,unit,convention\n"a, ""b""\nc",,parameters,11805916')
    assert list(csv.reader(io.StringIO(text)))[1:] == [
        ['a, "b"\nc', "", "parameters", "1180591620717411303424", "parameter", "Counted, as ever."],
        ["d", "", "parameters", "0.1", "parameter", "Counted, as ever."],
    ]


# --- What is refused -------------------------------------------------------------------------------------------


def error_of(flags: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(flags) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line


BUDGET = ["--training_budget", "5M"]


def test_nothing_is_replaced_without_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, other = tmp_path / "budget.csv", tmp_path / "runs.csv"
    file.write_text("mine")
    other.write_text("of another run")
    rule = "exists already; give --force to replace it, or another name"
    assert error_of([*BUDGET, "--csv", str(tmp_path)], capsys) == f"error: {file}: {rule}"
    assert file.read_text() == "mine"
    assert main([*BUDGET, "--csv", str(tmp_path), "--force"]) == 0
    assert file.read_text().startswith("scope,")
    assert other.read_text() == "of another run"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["budget.csv", "runs.csv"]


def test_what_is_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.write_text("")
    missing = tmp_path / "no" / "folder"
    for path, rule in (
        (file, "is not a folder; name a folder for several files"),
        (missing, f"there is no folder {missing.parent}"),
        (Path("/proc/nothing"), "cannot be written: No such file or directory"),
    ):
        assert error_of([*BUDGET, "--csv", str(path)], capsys) == f"error: {path}: {rule}"
    assert error_of([*BUDGET, "--csv", ""], capsys) == "error: --csv '': must name a folder"
    assert error_of([*BUDGET, "--csv", "a\0b"], capsys).endswith("cannot be written: a name has no null byte")


def test_a_folder_that_may_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the tests may run as root, who may write everywhere
    assert (
        error_of([*BUDGET, "--csv", str(tmp_path)], capsys)
        == f"error: {tmp_path}: cannot be written: Permission denied"
    )


def test_one_file_for_two_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "budget.csv"
    line = error_of([*BUDGET, "--csv", str(tmp_path), "--design", str(file)], capsys)
    assert line == f"error: {file}: --design and --csv name one file: name another for one of them"


def test_a_file_that_appears_meanwhile_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rename = output_file._rename_to_new

    def rename_but_not_the_second(temporary: str, path: str) -> None:
        if path.endswith("b.csv"):
            raise FileExistsError(17, "File exists", temporary, None, path)
        rename(temporary, path)

    monkeypatch.setattr(output_file, "_rename_to_new", rename_but_not_the_second)
    folder = tmp_path / "out"
    files = {str(folder / name): name for name in ("a.csv", "b.csv")}
    with pytest.raises(UserError, match=r"out/b\.csv: exists already"):
        output_file.write_together(files, folder=str(folder), overwrite=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("force", [[], ["--force"]], ids=["new", "force"])
@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_no_file_is_written_if_the_disk_is_full_at_the_last(
    call: str, force: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows and a page: the last of them fails, when its content is written or when it is to have its name."""

    page, calls = str(tmp_path / "page.html"), list[Any]()
    of, name = {"fsync": (os, "fsync"), "rename": (os, "replace") if force else (output_file, "_rename_to_new")}[call]
    done = getattr(of, name)

    def all_but_the_last(*args: Any) -> None:
        calls.append(args)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        done(*args)

    monkeypatch.setattr(of, name, all_but_the_last)
    line = error_of([*BUDGET, "--csv", str(tmp_path / "out"), "--html", page, *force], capsys)
    assert line == f"error: {page}: cannot be written: No space left on device"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["slide.png", "rows.csv", "A.HTML", "a.json", "a.md", "a.pdf", "a.svg"])
def test_a_folder_is_not_named_as_a_file(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / name
    line = error_of([*BUDGET, "--csv", str(folder)], capsys)
    ending = folder.suffix.lower()
    assert line == f"error: {folder}: {ending} is the ending of one file; name a folder for several files"
    folder.mkdir()
    assert main([*BUDGET, "--csv", str(folder)]) == 0


def test_a_plan_may_name_the_folder(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(f'training_budget = "5M"\ncsv = "{tmp_path / "out"}"\n')
    options: Namespace = read_flags(["--plan", str(tmp_path / "plan.toml")])
    assert options.csv == str(tmp_path / "out")


@pytest.mark.parametrize("kind", [FittedLaw, CalibratedCluster, FoundMachine])
def test_rows_beside_the_output_of_another_command(kind: type[Any], tmp_path: Path) -> None:
    output, folder, result = tmp_path / "out.json", tmp_path / "rows", made_up(kind)
    options = Namespace(output=str(output), csv=str(folder), force=False)
    check_rows_and_output(options, "found.csv", {"read": None})
    write_rows_and_output(options, {"found.csv": result}, "{}")
    assert output.read_text() == "{}"
    assert values_in(folder / "found.csv") == numbers_of(result, without=("bootstrap",))
    with pytest.raises(UserError, match=r"out\.json: exists already"):
        check_rows_and_output(options, "found.csv", {})
    output.unlink()
    with pytest.raises(UserError, match=r"found\.csv: exists already"):
        check_rows_and_output(options, "found.csv", {})
    options = Namespace(output=str(folder / "found.csv"), csv=str(folder), force=True)
    with pytest.raises(UserError, match="--output and --csv name one file"):
        check_rows_and_output(options, "found.csv", {})


@pytest.mark.parametrize("command", [["fit", "runs.csv"], ["calibrate", "rows.csv"]])
def test_other_commands_take_a_folder_of_rows(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    line = error_of([*command, "--output", "out.json", "--csv", "/no/such/folder"], capsys)
    assert line == "error: /no/such/folder: there is no folder /no/such"
    assert error_of([*command, "--output", "out.json", "--csv", ""], capsys) == "error: --csv '': must name a folder"
