"""All laws for one budget, in one count of N and C."""

import msgspec
import pytest

from counting.cost.scaling_laws import LAWS, compute_optimum, optimum_intervals, predicted_loss
from counting.cost.scaling_laws.allocation import allocation_laws
from counting.cost.scaling_laws.shapes import LawShape, allocate_in_shape
from counting.cost.scaling_laws.side_by_side import LawsSideBySide, laws_side_by_side
from tests.counting.cost.scaling_laws.own_laws import law_of
from torch_models.errors import UserError

FLOPS = 5616 * 10**20
SHAPE = LawShape(
    model="given",
    designed=False,
    parameters=10**9,
    non_embedding_parameters=8 * 10**8,
    attention_flops_per_token=6e8,
    sequence_length=2048,
)


@pytest.fixture(scope="module")
def everything() -> LawsSideBySide:
    return laws_side_by_side(FLOPS, LAWS[0], shape=SHAPE)


def test_each_law_has_a_row(everything: LawsSideBySide) -> None:
    assert [row.law for row in everything.rows] == [law.name for law in (*LAWS, *allocation_laws())]
    assert (everything.followed, everything.training_flops) == ("course", FLOPS)
    assert len({row.source for row in everything.rows}) == len(everything.rows)
    assert msgspec.json.decode(msgspec.json.encode(everything), type=LawsSideBySide) == everything


def test_a_law_with_a_loss_stands_at_its_optimum(everything: LawsSideBySide) -> None:
    followed = compute_optimum(LAWS[0], FLOPS)
    least = predicted_loss(LAWS[0], followed.parameters, followed.tokens)
    for row, law in zip(everything.rows[: len(LAWS)], LAWS, strict=True):
        best = compute_optimum(law, FLOPS)
        assert (row.parameters, row.tokens) == (best.parameters, best.tokens)
        assert row.predicted_loss == predicted_loss(law, best.parameters, best.tokens)
        here = predicted_loss(LAWS[0], best.parameters, best.tokens)
        assert row.excess_loss == pytest.approx(here - least, abs=1e-9)
        assert (row.converted_by, row.quantity, row.gives, row.intervals) == (None, None, "loss", None)


def test_a_law_of_n_or_d_has_no_loss_and_what_it_costs_by_the_law_that_is_followed(everything: LawsSideBySide) -> None:
    followed = compute_optimum(LAWS[0], FLOPS)
    least = predicted_loss(LAWS[0], followed.parameters, followed.tokens)
    for row, law in zip(everything.rows[len(LAWS) :], allocation_laws(), strict=True):
        found, shape = allocate_in_shape(law, FLOPS, followed.parameters, SHAPE)
        assert (row.parameters, row.tokens, row.quantity) == (found.parameters, found.tokens, found.quantity)
        assert (row.predicted_loss, row.converted_by, row.gives) == (None, shape, law.gives)
        here = predicted_loss(LAWS[0], row.parameters, row.tokens)
        assert row.excess_loss == pytest.approx(here - least, abs=1e-9)
        assert 0 < row.wasted_compute < 1


def test_the_law_that_is_followed_comes_first_and_once() -> None:
    own = law_of((1.69, 406.4, 410.7, 0.34, 0.29), *[(1.7, 405.0, 410.0, 0.34, 0.29)] * 40)
    rows = laws_side_by_side(FLOPS, own, (LAWS[1], own, LAWS[1])).rows
    assert [row.law for row in rows] == ["own", "hoffmann-2022"]
    assert (rows[0].excess_loss, rows[0].wasted_compute) == (0, 0)
    assert rows[0].intervals == optimum_intervals(own, FLOPS)


def test_too_little_compute() -> None:
    with pytest.raises(UserError, match="training FLOPs are too few for any model"):
        laws_side_by_side(5, LAWS[0])
