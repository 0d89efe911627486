"""The measurement held against the formulas: equal to the integer, or an error that names the component."""

from collections.abc import Iterator, Sequence

import msgspec

from counting.counts import COMPONENTS, AttentionCore, Counts, LayerCounts, LayerMemory, ModelCounts, StepFlops
from counting.step_profile import StepProfile

WHOLE = "total"  # the component of a number that is not divided into components


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One number of which the module and the formula speak independently."""

    quantity: str
    scope: str
    component: str
    measured: int
    analytic: int

    @property
    def ok(self) -> bool:
        """Equal; there is no tolerance."""
        return self.measured == self.analytic

    def __str__(self) -> str:
        relation = "=" if self.ok else "differs from"
        text = f"{self.quantity}, {self.scope}, {self.component}: measured {self.measured:,} {relation} "
        text += f"formula {self.analytic:,}"
        return text if self.ok else f"{text}, by {self.measured - self.analytic:+,}"


class TraceCheck(msgspec.Struct, frozen=True, kw_only=True):
    """One number that fvcore's trace and torch's dispatch counter measured independently."""

    quantity: str
    scope: str
    component: str
    traced: int
    dispatched: int

    @property
    def ok(self) -> bool:
        """Equal; there is no tolerance."""
        return self.traced == self.dispatched

    def __str__(self) -> str:
        relation = "=" if self.ok else "differs from"
        text = f"{self.quantity}, {self.scope}, {self.component}: traced {self.traced:,} {relation} "
        text += f"dispatched {self.dispatched:,}"
        return text if self.ok else f"{text}, by {self.traced - self.dispatched:+,}"


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """All checks of one analysis: against formulas for a native family, else of one measurement against another."""

    ok: bool
    checks: tuple[Check, ...]
    trace_checks: tuple[TraceCheck, ...] = ()


class DisagreementError(Exception):
    """Two witnesses of one number differ: one of them is wrong, and no number of this analysis can be trusted."""

    def __init__(self, name: str, checks: Sequence[Check | TraceCheck]) -> None:
        self.checks = checks
        super().__init__("\n".join(f"{name}: {check}" for check in checks))


def reconcile(name: str, measured: ModelCounts, analytic: ModelCounts) -> Agreement:
    """Every number of `measured` beside its formula; raises `DisagreementError` if any two differ."""
    checks = tuple(_checks(measured, analytic))
    different = [check for check in checks if not check.ok]
    if different:
        raise DisagreementError(name, different)
    return Agreement(ok=True, checks=checks)


def reconcile_step(name: str, measured: StepFlops, analytic: StepFlops) -> tuple[Check, ...]:
    """The FLOPs of one training step beside their formulas; raises `DisagreementError` if any two differ."""
    checks = tuple(
        check
        for part in StepFlops.__struct_fields__
        for check in _by_component("training_flops", f"step, {part}", getattr(measured, part), getattr(analytic, part))
    )
    different = [check for check in checks if not check.ok]
    if different:
        raise DisagreementError(name, different)
    return checks


def reconcile_step_memory(name: str, measured: StepProfile, analytic: StepProfile) -> tuple[Check, ...]:
    """The bytes of one training step beside their formulas; raises `DisagreementError` if any two differ."""
    pairs = zip(_bytes_of(measured, "step"), _bytes_of(analytic, "step"), strict=True)
    checks = tuple(
        Check(quantity="step_memory_bytes", scope=scope, component=component, measured=one, analytic=other)
        for (scope, component, one), (_, _, other) in pairs
        if one or other
    )
    different = [check for check in checks if not check.ok]
    if different:
        raise DisagreementError(name, different)
    return checks


def _bytes_of(profile: msgspec.Struct, scope: str, above: str = "") -> Iterator[tuple[str, str, int]]:
    """Every number of a profile: whose it is, what it is called, and how much; a count of layers is none."""
    for field in profile.__struct_fields__:
        value = getattr(profile, field)
        if isinstance(value, tuple):
            for layer in value:
                yield from _bytes_of(layer, f"{layer.kind} layer")
        elif isinstance(value, msgspec.Struct):
            yield from _bytes_of(value, scope, f"{field}.")
        elif isinstance(value, int) and field != "count":
            yield scope, f"{above}{field}", value


def compare_counters(name: str, counts: ModelCounts) -> Agreement:
    """Every FLOP of a model without formulas, by trace and by dispatch; raises `DisagreementError` if any differ."""
    pairs = [(f"{layer.kind} layer", layer.forward_flops, layer.dispatched_flops) for layer in counts.layers]
    pairs.append(("outside the layers", counts.outside_flops, counts.outside_dispatched_flops))
    checks = tuple(check for pair in pairs for check in _trace_checks(*pair))
    different = [check for check in checks if not check.ok]
    if different:
        raise DisagreementError(name, different)
    return Agreement(ok=True, checks=(), trace_checks=checks)


def _trace_checks(scope: str, traced: Counts, dispatched: Counts) -> Iterator[TraceCheck]:
    components = [c for c in COMPONENTS if getattr(traced, c) or getattr(dispatched, c)]
    rows = [(c, getattr(traced, c), getattr(dispatched, c)) for c in components]
    for component, one, other in [*rows, (WHOLE, traced.total, dispatched.total)]:
        yield TraceCheck(quantity="forward_flops", scope=scope, component=component, traced=one, dispatched=other)


def _checks(measured: ModelCounts, analytic: ModelCounts) -> Iterator[Check]:
    for one, other in zip(measured.layers, analytic.layers, strict=True):
        yield from _layer_checks(one, other)
    yield from _by_component("parameters", "model", measured.parameters, analytic.parameters)
    yield from _by_component("forward_flops", "model", measured.forward_flops, analytic.forward_flops)
    yield from _by_component("dispatched_flops", "model", measured.dispatched_flops, analytic.dispatched_flops)
    for quantity in ("active_parameters", "linear_weights", "router_correction_bias"):
        yield _whole(quantity, "model", getattr(measured, quantity), getattr(analytic, quantity))
    yield from _core_checks("model", measured.attention_core, analytic.attention_core)
    yield from _by_component("parameters", "mtp", measured.mtp.parameters, analytic.mtp.parameters)
    yield from _by_component("forward_flops", "mtp", measured.mtp.forward_flops, analytic.mtp.forward_flops)
    yield from _by_component("dispatched_flops", "mtp", measured.mtp.dispatched_flops, analytic.mtp.dispatched_flops)
    yield from _core_checks("mtp", measured.mtp.attention_core, analytic.mtp.attention_core)
    for quantity in ("linear_weights", "router_correction_bias"):
        yield _whole(quantity, "mtp", getattr(measured.mtp, quantity), getattr(analytic.mtp, quantity))


def _layer_checks(measured: LayerCounts, analytic: LayerCounts) -> Iterator[Check]:
    scope = f"{measured.kind} layer"
    for quantity in ("parameters", "forward_flops", "dispatched_flops"):
        yield from _by_component(quantity, scope, getattr(measured, quantity), getattr(analytic, quantity))
    yield from _core_checks(scope, measured.attention_core, analytic.attention_core)
    for quantity in ("inactive_parameters", "linear_weights", "router_correction_bias"):
        yield _whole(quantity, scope, getattr(measured, quantity), getattr(analytic, quantity))
    assert measured.memory and analytic.memory and measured.memory_no_grad and analytic.memory_no_grad
    for quantity, one, other in (
        ("peak_memory_bytes", measured.memory, analytic.memory),
        ("peak_memory_no_grad_bytes", measured.memory_no_grad, analytic.memory_no_grad),
    ):
        for part in LayerMemory.__struct_fields__:
            yield Check(
                quantity=quantity,
                scope=scope,
                component=part,
                measured=getattr(one, part),
                analytic=getattr(other, part),
            )
        yield _whole(quantity, scope, one.peak, other.peak)


def _core_checks(scope: str, measured: AttentionCore, analytic: AttentionCore) -> Iterator[Check]:
    for part in AttentionCore.__struct_fields__:
        yield Check(
            quantity="attention_core_flops",
            scope=scope,
            component=part,
            measured=getattr(measured, part),
            analytic=getattr(analytic, part),
        )


def _by_component(quantity: str, scope: str, measured: Counts, analytic: Counts) -> Iterator[Check]:
    """A check for each component that either side counts, and one for the sum."""
    for component in COMPONENTS:
        count, formula = getattr(measured, component), getattr(analytic, component)
        if count or formula:
            yield Check(quantity=quantity, scope=scope, component=component, measured=count, analytic=formula)
    yield _whole(quantity, scope, measured.total, analytic.total)


def _whole(quantity: str, scope: str, measured: int, analytic: int) -> Check:
    return Check(quantity=quantity, scope=scope, component=WHOLE, measured=measured, analytic=analytic)
