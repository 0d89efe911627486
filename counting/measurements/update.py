"""What follows the backward pass, measured over the whole model: gradient clipping, and the optimiser's update.

One layer of each kind is updated; the result is extended to all layers here, because how it extends depends on the
optimiser.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

from msgspec import structs
from torch import Tensor, nn

from counting.measurements.optimizer import NOTHING, Trained, Update, clip, update_together, with_gradients
from counting.measurements.parameters import (
    count_parameters,
    frozen_parameters,
    linear_weights,
    moments_by_recipe,
    trained_tensors,
    updated_parameters,
)
from counting.measurements.probe import Probe
from counting.recipes import ModelStates, Optimizer, Precision, TrainedTensor, model_states, states_measurable
from counting.setup import Setup
from counting.step.profile import LayerProfile, StepProfile

Runs = Sequence[tuple[int, int]]  # equal layers in a row, in the model's order: the index of their kind, their number


def with_update(
    profile: StepProfile, groups: "TrainedGroups", runs: Runs, setup: Setup, by_recipe: Callable[[], StepProfile]
) -> tuple[StepProfile, StepProfile | None]:
    """`profile` with gradient clipping, model states and the optimiser's step, after a backward pass.

    If torch does not run the update on the meta device, the states are in a second profile, that of `by_recipe`. Call
    it inside `measuring`.
    """
    precision, optimizer = setup.precision_recipe, setup.optimizer_recipe
    counts = [layer.count for layer in profile.layers]
    if setup.clip_gradients:
        profile = structs.replace(profile, gradient_clipping=_clipping(groups, counts))
    if not precision.measurable:
        return profile, by_recipe()
    updates = _Updates(precision, optimizer)
    profile = structs.replace(profile, optimizer_step=updates.peak(groups, counts, runs))
    if not states_measurable(precision, optimizer):
        return profile, by_recipe()
    of_layers = [
        updates.states(layer) + _weights(frozen) for layer, frozen in zip(groups.layers, groups.frozen, strict=True)
    ]
    return _with_states(profile, of_layers, updates.states(groups.outside) + _weights(groups.frozen_outside)), None


def _weights(parameters: Sequence[Tensor]) -> ModelStates:
    """The states of parameters that no gradient reaches: weights alone."""
    return ModelStates(weights=sum(each.nbytes for each in parameters), gradients=0, masters=0, moments=0)


def runs_of_probe(probe: Probe) -> list[tuple[int, int]]:
    """The runs of equal layers of the whole model."""
    places = {layer: index for index, (layer, _) in enumerate(probe.groups)}
    return [(places[run.layer], run.count) for run in probe.spec.layer_runs]


class TrainedGroups(NamedTuple):
    """The trained parameters in the order in which an optimiser updates them."""

    embedding: list[Trained]
    layers: list[list[Trained]]  # one of each kind
    rest: list[Trained]  # multi-token-prediction layers, final norm, head
    frozen: list[list[Tensor]]  # of one layer of each kind, parameters that no gradient reaches: those of indexers
    frozen_outside: list[Tensor]

    @property
    def outside(self) -> list[Trained]:
        """Those in no decoder layer."""
        return [*self.embedding, *self.rest]


def trained_groups(probe: Probe, precision: Precision) -> TrainedGroups:
    """The parameters of the probe with their gradients, after a backward pass."""
    trained = with_gradients(updated_parameters(probe.model), trained_tensors(probe.model), precision)
    frozen = [parameter for parameter in probe.model.parameters() if not parameter.requires_grad]
    return in_groups(trained, frozen, [list(layer.parameters()) for layer in probe.layers])


def in_groups(
    trained: Sequence[Trained], frozen: Sequence[Tensor], layers: Sequence[Sequence[Tensor]]
) -> TrainedGroups:
    """The trained and the frozen parameters in groups; `layers` are the parameters of one layer of each kind."""
    place = {id(parameter): index for index, layer in enumerate(layers) for parameter in layer}
    found = TrainedGroups([], [[] for _ in layers], [], [[] for _ in layers], [])
    for parameter in frozen:
        index = place.get(id(parameter))
        (found.frozen_outside if index is None else found.frozen[index]).append(parameter)
    for each in trained:
        index = place.get(id(each.parameter))
        if index is not None:
            found.layers[index].append(each)
        elif any(found.layers):
            found.rest.append(each)
        else:
            found.embedding.append(each)
    return found


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

    def peak(self, groups: TrainedGroups, counts: Sequence[int], runs: Runs) -> int:
        """The peak bytes of temporary tensors in the optimiser's step over the whole model.

        An optimiser that computes with all parameters at once needs the sum over them, others the largest. One that
        carries tensors over from one parameter to the next is run over each two layers that follow each other in the
        model; with master weights it is called for each parameter apart.
        """
        if self.optimizer.all_at_once:
            layers = zip(groups.layers, counts, strict=True)
            return self._together(groups.outside) + sum(self._together(layer) * count for layer, count in layers)
        if self.optimizer.carries_over and not self.precision.master_bytes:
            return max(map(self._together, _neighbours(groups, runs)))
        return max(self._of_one(each).peak for group in (groups.outside, *groups.layers) for each in group)

    def _of_one(self, trained: Trained) -> Update:
        if trained.tensor not in self._known:
            self._known[trained.tensor] = update_together([trained], self.precision, self.optimizer)
        return self._known[trained.tensor]

    def _together(self, trained: Sequence[Trained]) -> int:
        return update_together(trained, self.precision, self.optimizer).peak


def _neighbours(groups: TrainedGroups, runs: Runs) -> list[list[Trained]]:
    """Rows of parameters in which each two layers that follow each other in the model do so, as do the other parts."""
    kinds = [kind for kind, count in runs for _ in range(min(count, 2))]
    rows, at, seen = [[*groups.embedding, *groups.layers[kinds[0]]]], kinds[0], set()
    for pair in pairwise(kinds):
        if pair in seen:
            continue
        seen.add(pair)
        before, at = (at, pair[1])
        if pair[0] == before:
            rows[-1] += groups.layers[at]
        else:
            rows.append([*groups.layers[pair[0]], *groups.layers[at]])
    if at == kinds[-1]:
        rows[-1] += groups.rest
    else:
        rows.append([*groups.layers[kinds[-1]], *groups.rest])
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
    kinds = [(spec.kind, count) for spec, count in probe.groups]
    return states_of_modules(probe.layers, kinds, probe.model, linear_weights, precision, optimizer)


def states_of_modules(
    layers: Sequence[nn.Module],
    kinds: Sequence[tuple[str, int]],
    model: nn.Module,
    linear: Callable[[nn.Module], int],
    precision: Precision,
    optimizer: Optimizer,
) -> StepProfile:
    """States by recipe of one layer of each of `kinds`, names with numbers, and of the rest of the `model` with them.

    `linear` says how many weights of a module are in matrices that fp8 recipes quantise.
    """

    def states(module: nn.Module) -> ModelStates:
        total, moments = count_parameters(module).total, moments_by_recipe(module, precision, optimizer)
        frozen = frozen_parameters(module)
        return model_states(total, linear(module), moments, precision, frozen=frozen)

    of_layers = [states(layer) for layer in layers]
    outside = states(model)
    for of_layer in of_layers:
        outside -= of_layer
    profile = StepProfile(layers=tuple(LayerProfile(kind=kind, count=count) for kind, count in kinds))
    return _with_states(profile, of_layers, outside)
