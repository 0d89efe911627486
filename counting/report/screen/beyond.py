"""A budget beyond plain compute on the first screen: repeated tokens, serving, mixtures of experts."""

from collections.abc import Iterator

from counting.cost.beyond_compute import (
    BeyondCompute,
    DataLimitedBudget,
    InferenceAwareBudget,
    MixtureBudget,
    MixtureOnModel,
)
from counting.cost.scaling_laws.mixtures import MixtureOptimum
from counting.cost.scaling_laws.repeated_tokens import MUENNIGHOFF_2023
from counting.report.format import readable, short_percent, three_digits
from counting.report.screen.lines import Lines

BEYOND_HEADINGS = ("parameters", "tokens", "loss", "")


def beyond_screen(lines: Lines, beyond: BeyondCompute, *, asked_only: bool = False) -> None:
    """Add a table of what was asked, each for itself, and notes that say what it costs.

    With `asked_only`, given mixtures have no row, and the star is explained elsewhere.
    """
    narrow = lines.narrow
    rows: list[tuple[str, ...]] = [("beyond compute" if narrow else "beyond plain compute", *BEYOND_HEADINGS)]
    if beyond.data_limited is not None:
        rows.append(_data_limited_row(beyond.data_limited, narrow=narrow))
    if beyond.inference_aware is not None:
        rows.append(_inference_aware_row(beyond.inference_aware, narrow=narrow))
    if beyond.mixture is not None:
        rows += _mixture_rows(beyond.mixture, narrow=narrow, models=not asked_only)
    if len(rows) == 1:
        return
    lines.columns(rows)
    if beyond.data_limited is not None:
        _too_many_epochs(lines, beyond.data_limited)
    if not asked_only and any(cell.endswith("*") for row in rows for cell in row):
        lines.text(f"* beyond the runs of its law{_how_far(beyond.mixture)}")
    if beyond.data_limited is not None:
        _data_limited_notes(lines, beyond.data_limited)
    if beyond.inference_aware is not None:
        _inference_aware_notes(lines, beyond.inference_aware)
    if beyond.mixture is not None:
        _mixture_notes(lines, beyond.mixture)


def _data_limited_row(limited: DataLimitedBudget, *, narrow: bool) -> tuple[str, ...]:
    best = limited.optimum
    noun = "" if narrow else " token" if best.unique_tokens == 1 else " tokens"
    return (
        f"{readable(best.unique_tokens)} unique{noun}",
        readable(best.parameters),
        readable(best.tokens),
        _loss(best.predicted_loss, extrapolated=best.extrapolated),
        f"{three_digits(best.epochs)} epochs",
    )


def _inference_aware_row(aware: InferenceAwareBudget, *, narrow: bool) -> tuple[str, ...]:
    best = aware.optimum.best
    return (
        f"{'' if narrow else 'and '}serving {readable(aware.optimum.inference_tokens)}",
        readable(best.parameters),
        readable(best.tokens),
        _loss(best.predicted_loss, extrapolated=best.extrapolated),
        f"{short_percent(best.inference_share)} {'' if narrow else 'is '}serving",
    )


def _mixture_rows(mixture: MixtureBudget, *, narrow: bool, models: bool) -> Iterator[tuple[str, ...]]:
    for name, of in _every(mixture):
        if isinstance(of, MixtureOnModel) and not models:
            continue
        rate = three_digits(of.expansion_rate)
        yield (
            (f"mixture × {rate}" if of is mixture.optimum else name) if narrow else f"{name}, expansion {rate}",
            f"{readable(of.parameters)} active",
            readable(of.tokens),
            _loss(of.predicted_loss, extrapolated=of.orders_beyond > 0),
            f"dense {of.dense_loss:.3f}",
        )


def _every(mixture: MixtureBudget) -> list[tuple[str, MixtureOptimum | MixtureOnModel]]:
    """The best mixture, if it was asked for, and the given ones, by name."""
    best = mixture.optimum
    models = [(model.model, model) for model in mixture.models]
    return [*([] if best is None else [("mixture", best)]), *models]


def _loss(loss: float, *, extrapolated: bool) -> str:
    return f"{loss:.3f}{'*' if extrapolated else ''}"


def _how_far(mixture: MixtureBudget | None) -> str:
    """How far the law of mixtures is extrapolated at most; empty if it is not."""
    if mixture is None:
        return ""
    orders = max(of.orders_beyond for _, of in _every(mixture))
    return f"; that of mixtures by {orders:.1f} orders of magnitude" if orders > 0 else ""


def _too_many_epochs(lines: Lines, limited: DataLimitedBudget) -> None:
    """Add that the most epochs shown are beyond the runs of the fit, if they are."""
    most = max(limited.optimum.epochs, *(model.epochs for model in limited.models), 0.0)
    if most > MUENNIGHOFF_2023.most_epochs:
        end = f"{MUENNIGHOFF_2023.most_epochs:g} (Muennighoff et al. 2023)"
        lines.text(f"{three_digits(most)} epochs: the runs of the fit end at {end}, where many already did harm")


def _data_limited_notes(lines: Lines, limited: DataLimitedBudget) -> None:
    best = limited.optimum
    if best.epochs <= 1:
        lines.note("unique tokens", "more than the best model sees: nothing repeats")
        return
    other = "" if limited.scaling_law == limited.worth else f", with {limited.scaling_law} an assumption"
    lines.note(
        "unique tokens",
        f"{short_percent(best.unlimited_share)} of the FLOPs reach that loss if every token is new, by {limited.worth}"
        f"{other}",
    )


def _inference_aware_notes(lines: Lines, aware: InferenceAwareBudget) -> None:
    cheapest = aware.optimum.cheapest
    lines.note(
        "serving",
        f"adds {short_percent(aware.optimum.added)} to the best model above; {readable(cheapest.parameters)} on "
        f"{readable(cheapest.tokens)} tokens have its loss for {short_percent(aware.optimum.saved)} less in all",
    )
    for model in aware.models:
        left = f"leaves {readable(model.tokens)} tokens of training" if model.tokens else "is more than there is"
        lines.note("", f"{model.model}: serving is {short_percent(model.share)} of the budget, and {left}")


def _mixture_notes(lines: Lines, mixture: MixtureBudget) -> None:
    best = mixture.optimum
    if best is not None:
        total, ratio = readable(best.total_parameters), three_digits(best.dense_flops_ratio)
        lines.note("mixture", f"about {total} in total; a dense model reaches its loss with {ratio} × the FLOPs")
    lines.note("its law", f"{mixture.scaling_law}, on other data: compare with dense only")
