"""Laws in files: what is read, what is refused, and in which words."""

import json
from math import exp
from pathlib import Path
from typing import Any

import msgspec
import pytest

from counting.cost.scaling_laws import DEFAULT_LAW, LAWS, Constant, ScalingLaw, find_law, read_law
from counting.cost.scaling_laws.law_file import law_as_json
from tests.counting.cost.scaling_laws.own_laws import law_of
from torch_models.errors import UserError

DRAW = [1.7, 400.0, 410.0, 0.34, 0.29]
OWN: dict[str, Any] = {
    "name": "own",
    "irreducible_loss": {"value": 1.7, "low": 1.6, "high": 1.8},
    "parameter_coefficient": {"value": 400},
    "token_coefficient": {"value": 410.0},
    "parameter_exponent": {"value": 0.34},
    "token_exponent": {"value": 0.29, "low": 0.28, "high": 0.31},
    "source": "our runs of last spring",
    "fitted_parameters": [1e8, 1e10],
    "fitted_tokens": [2e9, 2e11],
    "runs": 41,
    "bootstrap": [DRAW] * 40,
}


def written(folder: Path, content: object) -> Path:
    path = folder / "law.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_law_is_read(tmp_path: Path) -> None:
    law = read_law(written(tmp_path, OWN | {"_note": "a comment"}))
    assert law.parameter_coefficient == Constant(value=400.0)
    assert law.token_exponent == Constant(value=0.29, low=0.28, high=0.31)
    assert (law.name, law.runs, law.method, law.fitted_tokens) == ("own", 41, None, (2e9, 2e11))
    assert law.bootstrap == (tuple(DRAW),) * 40
    assert find_law(tmp_path / "law.json") == find_law(str(tmp_path / "law.json")) == law
    assert find_law(law) is law


@pytest.mark.parametrize(
    "law", [*LAWS, law_of((1.69, 406.4, 410.7, 0.34, 0.29), *[(1.7, 405.0, 410.0, 0.34, 0.29)] * 40)]
)
def test_what_is_written_is_read_again(law: ScalingLaw, tmp_path: Path) -> None:
    (tmp_path / "law.json").write_bytes(law_as_json(law))
    assert find_law(tmp_path / "law.json") == law
    assert msgspec.json.decode(msgspec.json.encode(law), type=ScalingLaw) == law


def test_the_constants_of_the_paper_s_source() -> None:
    """Hoffmann et al. 2022 as quoted by Besiroglu et al. 2024: ln A 6.0073404, ln B 6.0179186, ln E 0.5267228."""
    law = find_law("hoffmann-2022-unrounded")
    assert law.irreducible_loss.value == exp(0.5267228)
    assert law.parameter_coefficient.value == exp(6.0073404)
    assert law.token_coefficient.value == exp(6.0179186)
    assert (law.parameter_exponent.value, law.token_exponent.value) == (0.33917084, 0.2849083)


def test_the_constants_of_muennighoff() -> None:
    """Muennighoff et al. 2023 on C4: ln E 0.6254804, ln A 6.255414, ln B 7.3049974, both exponents 0.3526596."""
    law = find_law("muennighoff-2023")
    assert law.irreducible_loss.value == exp(0.6254804)
    assert law.parameter_coefficient.value == exp(6.255414)
    assert law.token_coefficient.value == exp(7.3049974)
    assert law.parameter_exponent.value == law.token_exponent.value == 0.3526596


def test_the_default_is_a_published_one_and_each_has_a_source() -> None:
    assert DEFAULT_LAW.name == "course"
    names = "course hoffmann-2022 hoffmann-2022-unrounded besiroglu-2024 muennighoff-2023"
    assert [law.name for law in LAWS] == names.split()
    assert all("et al." in law.source for law in LAWS)


def test_a_file_does_not_hide_a_published_law(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, OWN).rename(tmp_path / "course")
    assert find_law("course") is DEFAULT_LAW
    (tmp_path / "course").rename(tmp_path / "mine")
    assert find_law("mine").name == "own"  # a file without the suffix, as it is there


LEFT_OUT = object()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("token_exponent", LEFT_OUT, "token_exponent = null: is missing and has no default"),
        ("source", LEFT_OUT, "source = null: is missing and has no default"),
        ("fitted_tokens", LEFT_OUT, "fitted_tokens = null: is missing and has no default"),
        ("token_exponent", 0.29, 'token_exponent = 0.29: must be an object with a value, as {"value": 0.34}, '),
        ("token_exponent", {"low": 0.2, "high": 0.3}, "token_exponent.value = null: is missing and has no default"),
        ("token_exponent", {"value": 0}, "token_exponent.value = 0.0: must be a number above 0"),
        ("token_coefficient", {"value": -1}, "token_coefficient.value = -1.0: must be a number above 0"),
        ("token_exponent", {"value": 3.5}, "token_exponent.value = 3.5: must be a number above 0 and at most 3"),
        ("token_exponent", {"value": "0.29"}, "token_exponent.value = '0.29': must be float, is str"),
        ("token_exponent", {"value": True}, "token_exponent.value = true: must be float, is bool"),
        ("token_exponent", {"value": 0.3, "error": 1}, "token_exponent.error = 1: this field is not understood"),
        ("token_exponent", {"value": 0.3, "low": 0.4, "high": 0.5}, "token_exponent.low = 0.4: must be from 0 to the"),
        (
            "token_exponent",
            {"value": 0.3, "low": 0.2, "high": 0.25},
            "token_exponent.high = 0.25: must be a number, at",
        ),
        ("token_exponent", {"value": 0.3, "low": -0.1, "high": 1}, "token_exponent.low = -0.1: must be from 0 to the"),
        (
            "token_exponent",
            {"value": 0.3, "low": 0.2},
            "token_exponent.low = 0.2: is one end of an interval: give both",
        ),
        ("fitted_tokens", [2e11, 2e9], "fitted_tokens = [200000000000.0, 2000000000.0]: must be the smallest and the"),
        ("fitted_tokens", [0, 2e9], "fitted_tokens = [0.0, 2000000000.0]: must be the smallest and the largest"),
        ("fitted_tokens", 5e9, "fitted_tokens = 5000000000.0: must be two numbers, the smallest and the largest"),
        ("runs", 0, "runs = 0: must be a whole number, at least 1"),
        ("runs", "many", "runs = 'many': must be int"),
        ("name", "", "name = '': must be a name on one line"),
        ("name", "a,b", "name = 'a,b': must be a name on one line, without commas and outer spaces"),
        ("name", "Course", "name = 'Course': is a published law's, with other constants: give it another"),
        ("name", "kaplan-2020", "name = 'kaplan-2020': is a published law's, with other constants: give it another"),
        (
            "token_coefficient",
            {"value": 1e301},
            "token_coefficient.value = 1e+301: must be a number above 0 and at most",
        ),
        (
            "token_coefficient",
            {"value": 10**400},
            "token_coefficient.value = an integer of 1329 bits: Number out of range",
        ),
        ("name", "x" * 61, "must have at most 60 characters"),
        (
            "bootstrap",
            [DRAW] * 39,
            "bootstrap = '39 draws': must be at least 40 draws for an interval of 95 %, or none",
        ),
        (
            "bootstrap",
            [*[DRAW] * 40, [1, 2, 3, 4]],
            "bootstrap[40] = [1, 2, 3, 4]: must be five numbers: E, A, B, alpha",
        ),
        ("bootstrap", [*[DRAW] * 40, [1, 2, "3", 0.4, 1]], "bootstrap[40] = [1, 2, '3', 0.4, 1]: must be five numbers"),
        (
            "bootstrap",
            [[1, 2, 3, 0, 1]] * 40,
            "bootstrap[0] = [1.0, 2.0, 3.0, 0.0, 1.0]: must be E, A, B, alpha, beta, ",
        ),
        (
            "bootstrap",
            [[9.9, 4e5, 1500, 0.9, 0.1]] * 40,
            "irreducible_loss.value = 1.7: must be near its draws in the bootstrap, which are from 9.9 to 9.9",
        ),
        ("bootstrap", "none", "bootstrap = 'none': must be a list of draws, each of which must be five numbers"),
        ("exponent", 1, "exponent = 1: this field is not understood"),
    ],
)
def test_a_law_that_is_none(field: str, value: object, message: str, tmp_path: Path) -> None:
    fields = {name: given for name, given in (OWN | {field: value}).items() if given is not LEFT_OUT}
    path = written(tmp_path, fields)
    with pytest.raises(UserError) as refused:
        find_law(path)
    text = str(refused.value)
    assert text.startswith(f"{path}: ")
    assert message in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ('{"name": NaN}', "not valid JSON"),
        ('{"name": "a", "name": "b"}', "name = 'b': the field occurs twice in its object: give it once"),
        ("[]", "must be a JSON object with the constants of one law"),
        ("{}", "must be a JSON object with the constants of one law"),
        ('"course"', "must be a JSON object with the constants of one law"),
        (" " * 1_000_001, "a file of a law has at most 1000000 bytes"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_a_file_that_is_no_law(content: str, message: str, tmp_path: Path) -> None:
    path = written(tmp_path, content)
    with pytest.raises(UserError) as refused:
        find_law(path)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("law", ["none.json", "no/such/law", "configs/."])
def test_no_such_file(law: str) -> None:
    with pytest.raises(UserError, match=r"(no such file|must be a file of JSON)$"):
        find_law(law)


@pytest.mark.parametrize("law", ["kaplan", "", "a\0b", 7, "x" * 5000])
def test_a_name_that_is_neither(law: Any) -> None:
    with pytest.raises(UserError, match=r"is not known: choose from course, .*, or name a file of a law, as law.json$"):
        find_law(law)


def test_constants_too_far_apart_are_no_traceback() -> None:
    from counting.cost.scaling_laws import compute_optimum, optimal_tokens

    far = law_of((1.0, 1e300, 1e-300, 1e-3, 1e-3))
    with pytest.raises(UserError, match=r"^the scaling law own has no optimum that is a number"):
        compute_optimum(far, 1e20)
    with pytest.raises(UserError, match=r"^the scaling law own has no optimum that is a number"):
        optimal_tokens(law_of((1.0, 1e-300, 1e300, 0.3, 1e-3)), 10**9)


def test_constants_are_near_their_draws() -> None:
    """E of 2.0 to 2.2 allows 1.8 less 1 %, to 2.4; A of 400 to 800, by its logarithm, 400 / 2 less 1 %."""
    draws = [(2.0 + n / 200, 400.0 * 2 ** (n / 40), 410.7, 0.34, 0.29) for n in range(41)]
    assert law_of((1.79, 201.0, 410.7, 0.34, 0.29), *draws).bootstrap == tuple(draws)
    for constants, field in (((1.75, 500.0), "irreducible_loss"), ((2.1, 190.0), "parameter_coefficient")):
        with pytest.raises(UserError, match=rf"^{field}.value = .*: must be near its draws in the bootstrap, which"):
            law_of((*constants, 410.7, 0.34, 0.29), *draws)
