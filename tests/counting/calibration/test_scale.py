"""One scale from measured and estimated seconds, and its error by leave-one-out."""

import pytest

from counting.calibration.scale import ScaledRow, fit_scale, median_error
from torch_models.errors import UserError


def test_the_scale_is_the_geometric_mean_and_each_row_is_predicted_by_the_others() -> None:
    """Ratios measured / estimated 2, 4, 8: powers 1, 2, 3 of 2, whose mean is 2, so the scale is 4.

    Without the first row (2 + 3) / 2 = 2.5, without the second (1 + 3) / 2 = 2, without the third 1.5.
    Predicted: 10 x 2^2.5 = 56.57, 5 x 4 = 20, 1 x 2^1.5 = 2.828; measured / predicted: 2^-1.5, 1, 2^1.5.
    """
    calibration, rows = fit_scale([20.0, 20.0, 8.0], [10.0, 5.0, 1.0])
    assert calibration.scale == pytest.approx(4)
    assert calibration.low == pytest.approx(2**-1.5)
    assert calibration.high == pytest.approx(2**1.5)
    assert calibration.rows == 3
    assert [row.predicted_seconds for row in rows] == pytest.approx([56.5685425, 20, 2.82842712])
    assert [row.error for row in rows] == pytest.approx([2**1.5 - 1, 0, 2**-1.5 - 1])
    assert [row.measured_seconds for row in rows] == [20, 20, 8]
    assert [row.estimated_seconds for row in rows] == [10, 5, 1]


def test_rows_that_are_off_by_one_factor_leave_no_error() -> None:
    calibration, rows = fit_scale([1.25, 2.5, 5.0, 10.0], [1.0, 2.0, 4.0, 8.0])
    assert calibration.scale == pytest.approx(1.25)
    assert (calibration.low, calibration.high) == pytest.approx((1, 1))
    assert calibration.low <= 1 <= calibration.high, "rounding leaves the band around the scale"
    assert median_error(rows) == pytest.approx(0, abs=1e-12)


def test_a_long_step_counts_as_much_as_a_short_one() -> None:
    short, _ = fit_scale([1.0, 1.0, 2.0], [1.0, 1.0, 1.0])
    long, _ = fit_scale([1.0, 1.0, 2000.0], [1.0, 1.0, 1000.0])
    assert short.scale == pytest.approx(long.scale)
    assert short.scale == pytest.approx(2 ** (1 / 3))


@pytest.mark.parametrize(
    ("measured", "says"),
    [([], "0 measured steps are"), ([1.0], "1 measured step is"), ([1.0, 2.0], "2 measured steps are")],
)
def test_two_rows_are_too_few(measured: list[float], says: str) -> None:
    with pytest.raises(UserError) as error:
        fit_scale(measured, [1.0] * len(measured))
    assert str(error.value) == f"{says} too few: a scale and its error need at least 3"


def test_the_median_of_errors_is_that_of_their_sizes() -> None:
    def rows(*errors: float) -> list[ScaledRow]:
        return [
            ScaledRow(measured_seconds=1, estimated_seconds=1, predicted_seconds=1 + error, error=error)
            for error in errors
        ]

    assert median_error(rows(-0.3, 0.1, 0.2)) == 0.2
    assert median_error(rows(-0.3, 0.1, 0.2, -0.4)) == pytest.approx(0.25)


def test_seconds_in_another_unit_are_refused() -> None:
    """Milliseconds: every row 2,000 times its estimate; or one row alone, 4,000 times what the others say."""
    with pytest.raises(UserError, match=r"^measured steps are off by 2,000 times: give seconds of one step"):
        fit_scale([2000.0, 4000.0, 8000.0], [1.0, 2.0, 4.0])
    with pytest.raises(UserError, match=r"^measured steps are off by 4,000 times"):
        fit_scale([1.0, 1.0, 4000.0], [1.0, 1.0, 1.0])
