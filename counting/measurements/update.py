"""What follows the backward pass, measured over the whole model: gradient clipping, and the optimiser's update.

One layer of each kind is updated; the result is extended to all layers here, because how it extends depends on the
optimiser.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from msgspec import structs
from torch import nn

from counting.measurements.optimizer import NOTHING, Trained, Update, clip, update_together, with_gradients
from counting.measurements.parameters import (
    count_parameters,
    frozen_parameters,
    linear_weights,
    moments_by_recipe,
    trained_parameters,
    trained_tensors,
)
from counting.measurements.probe import Probe
from counting.recipes import ModelStates, Optimizer, Precision, TrainedTensor, model_states, states_measurable
from counting.setup import Setup
from counting.step.profile import LayerProfile, StepProfile
from torch_models.spec import ModelSpec


def with_update(profile: StepProfile, probe: Probe, setup: Setup) -> tuple[StepProfile, StepProfile | None]:
    """`profile` with gradient clipping, model states and the optimiser's step, after a backward pass of the probe.

    If torch does not run the update on the meta device, the states are in a second profile, by recipe from the measured
    shapes. Call it inside `measuring`.
    """
    precision, optimizer = setup.precision_recipe, setup.optimizer_recipe
    groups = trained_groups(probe, precision)
    counts = [count for _, count in probe.groups]
    if setup.clip_gradients:
        profile = structs.replace(profile, gradient_clipping=_clipping(groups, counts))
    if not precision.measurable:
        return profile, states_by_recipe(probe, precision, optimizer)
    updates = _Updates(precision, optimizer)
    profile = structs.replace(profile, optimizer_step=updates.peak(groups, counts, probe.spec))
    if not states_measurable(precision, optimizer):
        return profile, states_by_recipe(probe, precision, optimizer)
    of_layers = [
        updates.states(group) + _frozen_states(layer) for group, layer in zip(groups.layers, probe.layers, strict=True)
    ]
    outside = updates.states(groups.outside) + sum(map(_frozen_states, probe.model.model.mtp_layers), NOTHING)
    return _with_states(profile, of_layers, outside), None


def _frozen_states(module: nn.Module) -> ModelStates:
    """Weights that no gradient reaches."""
    weights = sum(parameter.nbytes for parameter in module.parameters() if not parameter.requires_grad)
    return ModelStates(weights=weights, gradients=0, masters=0, moments=0)


class TrainedGroups(NamedTuple):
    """The trained parameters in the order in which an optimiser updates them."""

    embedding: list[Trained]
    layers: list[list[Trained]]  # one of each kind
    rest: list[Trained]  # multi-token-prediction layers, final norm, head

    @property
    def outside(self) -> list[Trained]:
        """Those in no decoder layer."""
        return [*self.embedding, *self.rest]


def trained_groups(probe: Probe, precision: Precision) -> TrainedGroups:
    """The parameters of the probe with their gradients, after a backward pass."""
    trained = with_gradients(trained_parameters(probe.model), trained_tensors(probe.model), precision)
    sizes = [len(trained_parameters(layer)) for layer in probe.layers]
    embedding, rest = trained[:1], trained[1:]
    assert embedding[0].parameter is probe.model.model.embed_tokens.weight
    layers = []
    for size in sizes:
        layers.append(rest[:size])
        rest = rest[size:]
    return TrainedGroups(embedding, layers, rest)


def _clipping(groups: TrainedGroups, counts: Sequence[int]) -> int:
    """The peak of clipping the gradients of the whole model, which grows by the same with each more of a layer."""
    peak = clip(each.gradient for each in groups.outside)
    for layer, count in zip(groups.layers, counts, strict=True):
        gradients = [each.gradient for each in layer]
        peak += count * (clip([*gradients, *gradients]) - clip(gradients))
    return peak


class _Updates:
    """Updates of tensors, each of which is measured once."""

    def __init__(self, precision: Precision, optimizer: Optimizer) -> None:
        self.precision = precision
        self.optimizer = optimizer
        self._known: dict[TrainedTensor, Update] = {}

    def states(self, group: Sequence[Trained]) -> ModelStates:
        """The model states of these parameters."""
        return sum((self._of_one(each).states for each in group), NOTHING)

    def peak(self, groups: TrainedGroups, counts: Sequence[int], spec: ModelSpec) -> int:
        """The peak bytes of temporary tensors in the optimiser's step over the whole model.

        An optimiser that computes with all parameters at once needs the sum over them, others the largest. One that
        carries tensors over from one parameter to the next is run over each two layers that follow each other in the
        model; with master weights it is called for each parameter apart.
        """
        if self.optimizer.all_at_once:
            layers = zip(groups.layers, counts, strict=True)
            return self._together(groups.outside) + sum(self._together(layer) * count for layer, count in layers)
        if self.optimizer.carries_over and not self.precision.master_bytes:
            return max(map(self._together, _neighbours(groups, spec)))
        return max(self._of_one(each).peak for group in (groups.outside, *groups.layers) for each in group)

    def _of_one(self, trained: Trained) -> Update:
        if trained.tensor not in self._known:
            self._known[trained.tensor] = update_together([trained], self.precision, self.optimizer)
        return self._known[trained.tensor]

    def _together(self, trained: Sequence[Trained]) -> int:
        return update_together(trained, self.precision, self.optimizer).peak


def _neighbours(groups: TrainedGroups, spec: ModelSpec) -> list[list[Trained]]:
    """Rows of parameters in which each two layers that follow each other in the model do so, as do the other parts."""
    of_kind = dict(zip((layer for layer, _ in spec.layer_groups()), groups.layers, strict=True))
    kinds = [run.layer for run in spec.layer_runs for _ in range(min(run.count, 2))]
    rows, at, seen = [[*groups.embedding, *of_kind[kinds[0]]]], kinds[0], set()
    for pair in pairwise(kinds):
        if pair in seen:
            continue
        seen.add(pair)
        before, at = (at, pair[1])
        if pair[0] == before:
            rows[-1] += of_kind[at]
        else:
            rows.append([*of_kind[pair[0]], *of_kind[at]])
    if at == kinds[-1]:
        rows[-1] += groups.rest
    else:
        rows.append([*of_kind[kinds[-1]], *groups.rest])
    return rows


def _with_states(profile: StepProfile, of_layers: Sequence[ModelStates], outside: ModelStates) -> StepProfile:
    layers = zip(profile.layers, of_layers, strict=True)
    return structs.replace(
        profile,
        layers=tuple(structs.replace(layer, states=states) for layer, states in layers),
        outside_states=outside,
    )


def states_by_recipe(probe: Probe, precision: Precision, optimizer: Optimizer) -> StepProfile:
    """States in formats that torch does not run on the meta device: measured parameters times the recipe's bytes."""

    def states(module: nn.Module) -> ModelStates:
        total, moments = count_parameters(module).total, moments_by_recipe(module, precision, optimizer)
        return model_states(total, linear_weights(module), moments, precision, frozen=frozen_parameters(module))

    of_layers = [states(layer) for layer in probe.layers]
    outside = states(probe.model)
    for of_layer in of_layers:
        outside -= of_layer
    layers = tuple(LayerProfile(kind=spec.kind, count=count) for spec, count in probe.groups)
    return _with_states(StepProfile(layers=layers), of_layers, outside)
