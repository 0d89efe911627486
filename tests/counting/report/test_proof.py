"""The proof as printed: every number with every witness's value."""

import re

import msgspec
import pytest

from counting.analysis import Analysis, analyze
from counting.reconcile import Agreement, Check
from counting.report.model import print_analysis
from counting.report.model.proof import print_proof
from counting.setup import Setup
from tests.shrunken import DEEPSEEK_V3


@pytest.fixture(scope="module", params=["mixed", "fp8"])
def analysis(request: pytest.FixtureRequest) -> Analysis:
    return analyze(DEEPSEEK_V3, Setup(sequence_length=16, precision=request.param))


def rows_by_table(text: str) -> dict[str, list[list[str]]]:
    """What witnesses a title names -> the rows below it, as cells."""
    tables: dict[str, list[list[str]]] = {}
    for line in text.splitlines():
        if title := re.fullmatch(r"\d+ numbers?(?:: | )(\S.*?) *", line):
            rows = tables[title[1]] = []
        elif line.strip() and tables:
            rows.append([cell.strip() for cell in re.split(r"  +", line.strip())])
    return tables


def test_every_number_stands_there_with_every_witness(analysis: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    print_proof(analysis.agreement)
    tables = rows_by_table(capsys.readouterr().out)
    printed = set()
    for title, (head, *rows) in tables.items():
        witnesses = head[3:]
        alone = {"by recipe": "recipe"}.get(title, title.removeprefix("by ").removesuffix(" alone"))
        assert witnesses == title.split(" = ") or witnesses == [alone]
        for scope, quantity, component, *values in rows:
            numbers = [value.replace(",", "") for value in values if value != "="]
            printed.add((scope, quantity, component, *zip(witnesses, map(int, numbers), strict=True)))
    checks = analysis.agreement.checks
    assert printed == {(check.scope, check.quantity, check.component, *check.values.items()) for check in checks}
    assert len(printed) == len(checks)


def test_the_title_counts_what_is_proven(analysis: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    print_analysis(analysis)
    out = capsys.readouterr().out
    checks = analysis.agreement.checks
    alone = [check for check in checks if list(check.values) == ["recipe"]]
    assert (analysis.setup.precision == "fp8") == bool(alone)
    assert f"{len(checks) - len(alone)} numbers, each measured = formula or simulation\n" in out
    assert (f"{len(alone)} numbers by recipe" in out) == bool(alone)


def test_what_has_no_formula_names_its_witnesses(capsys: pytest.CaptureFixture[str]) -> None:
    flops = Check(quantity="forward_flops", scope="model", component="mlp", values={"trace": 12, "dispatch": 12})
    parameters = msgspec.structs.replace(flops, quantity="parameters", values={"numel": 1_234})
    print_proof(Agreement(witnesses=("numel", "trace", "dispatch"), checks=(parameters, flops)))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines == [
        "1 number, each trace = dispatch",
        "1 number: trace = dispatch",
        "scope quantity component trace dispatch",
        "model forward_flops mlp 12 = 12",
        "1 number by numel alone",
        "scope quantity component numel",
        "model parameters mlp 1,234",
    ]
