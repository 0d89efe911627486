"""The proof as printed: every number with every witness's value."""

import re

import msgspec
import pytest

from counting.analysis import Analysis, analyze
from counting.reconcile import Agreement, Check
from counting.report.model.proof import print_proof
from counting.setup import Setup
from tests.shrunken import DEEPSEEK_V3


@pytest.fixture(scope="module", params=["mixed", "fp8"])
def analysis(request: pytest.FixtureRequest) -> Analysis:
    return analyze(DEEPSEEK_V3, Setup(sequence_length=16, precision=request.param))


def rows_by_list(text: str) -> dict[str, list[tuple[str, str, list[str]]]]:
    """What witnesses a title names -> whose number, what it measures with its component, and the values."""
    lists: dict[str, list[tuple[str, str, list[str]]]] = {}
    place = ""
    for line in text.splitlines():
        if title := re.fullmatch(r"\d+ numbers?(?:: | )(\S.*)", line):
            rows = lists[title[1]] = []
        elif line.startswith("    "):
            component, values = re.fullmatch(r" {4}(\S+) +(.*)", line).groups()  # type: ignore[union-attr]
            rows.append((place, component, [value.strip() for value in values.split(" = ")]))
        elif lists and line.strip():
            place = line.strip()
    return lists


def printed_proof(analysis: Analysis, capsys: pytest.CaptureFixture[str]) -> str:
    print_proof(analysis.agreement, analysis.name)
    return capsys.readouterr().out


@pytest.mark.parametrize("width", [60, 200])
def test_every_number_stands_there(
    width: int, analysis: Analysis, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With every witness where there is room for all; they are equal."""
    monkeypatch.setenv("COLUMNS", str(width))
    printed = set()
    count = 0
    for title, rows in rows_by_list(printed_proof(analysis, capsys)).items():
        alone = {"by recipe": "recipe"}.get(title, title.removeprefix("by ").removesuffix(" alone"))
        witnesses = title.split(" = ") if " = " in title else [alone]
        for place, component, values in rows:
            numbers = [int(value.replace(",", "")) for value in values]
            assert len(numbers) in ({len(witnesses)} if width == 200 else {1, len(witnesses)})
            assert len(set(numbers)) == 1
            printed.add((place, component, tuple(witnesses), numbers[0]))
            count += 1
    checks = analysis.agreement.checks
    assert count == len(checks)
    assert printed == {
        (f"{check.scope}, {check.quantity}", check.component, tuple(check.values), next(iter(check.values.values())))
        for check in checks
    }


@pytest.mark.parametrize("width", [80, 100])
def test_no_line_is_wider_than_the_output(
    width: int, analysis: Analysis, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for line in printed_proof(analysis, capsys).splitlines():
        assert len(line) <= width
        assert line == line.rstrip()


def test_the_title_counts_what_is_proven(analysis: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    out = printed_proof(analysis, capsys)
    checks = analysis.agreement.checks
    alone = [check for check in checks if list(check.values) == ["recipe"]]
    assert (analysis.setup.precision == "fp8") == bool(alone)
    assert f"{len(checks) - len(alone)} numbers: measured = formula or simulation" in out
    assert (f"{len(alone)} numbers by recipe" in out) == bool(alone)


def test_what_has_no_formula_names_its_witnesses(capsys: pytest.CaptureFixture[str]) -> None:
    flops = Check(quantity="forward_flops", scope="model", component="mlp", values={"trace": 12, "dispatch": 12})
    parameters = msgspec.structs.replace(flops, quantity="parameters", values={"numel": 1_234})
    print_proof(Agreement(witnesses=("numel", "trace", "dispatch"), checks=(parameters, flops)), "odd [b]name[/b]")
    assert capsys.readouterr().out.splitlines() == [
        "",
        "odd [b]name[/b]: 1 number: trace = dispatch, 1 by numel alone",
        "",
        "1 number: trace = dispatch",
        "  model, forward_flops",
        "    mlp  12 = 12",
        "",
        "1 number by numel alone",
        "  model, parameters",
        "    mlp  1,234",
    ]


def test_a_checkpoint_stands_apart(capsys: pytest.CaptureFixture[str]) -> None:
    """It has one sum, and must not seem to have proven the other numbers."""
    values = {"numel": 12, "formula": 12}
    layer = Check(quantity="parameters", scope="moe layer", component="mlp", values=values)
    model = Check(quantity="parameters", scope="model", component="total", values=values | {"checkpoint": 12})
    agreement = Agreement(witnesses=("numel", "formula", "checkpoint"), checks=(layer, model))
    print_proof(agreement, "llama")
    assert capsys.readouterr().out.splitlines() == [
        "",
        "llama: 1 number: measured = formula, 1: numel = formula = checkpoint",
        "",
        "1 number: numel = formula",
        "  moe layer, parameters",
        "    mlp  12 = 12",
        "",
        "1 number: numel = formula = checkpoint",
        "  model, parameters",
        "    total  12 = 12 = 12",
    ]
