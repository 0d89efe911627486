"""From the profile of a shallow model to the ranks of the deep one: peaks by phase, traffic, sums over the ranks."""

import msgspec
import pytest

from counting.counts import Counts, StepFlops
from counting.ranks.profile import (
    Collective,
    RankLayer,
    RankMicroBatch,
    RankProfile,
    RankShare,
    RankStretch,
    Traffic,
    collective_of,
)
from counting.ranks.result import RankAnalysis, Undivided, rank_classes, totals_over_ranks
from counting.ranks.shallow import Shallow, shallow
from counting.recipes import ModelStates
from counting.setup import Setup
from counting.step.profile import Stretch
from tests.counting.ranks.letters import model
from torch_models.layout import Layout

SETUP = Setup(sequence_length=8, micro_batches=1, mtp=False)
GATHER = Collective("forward", "all_gather", "fsdp").key
REDUCE = Collective("backward", "reduce_scatter", "fsdp").key
DEEP = "AAAAA"


def stretch(peak: int, net: int, key: str | None = None, **parts: int) -> RankStretch:
    traffic = {} if key is None else {key: Traffic(calls=1, bytes_in=1, bytes_out=8)}
    return RankStretch(memory=Stretch(peak=peak, net=net, **parts), traffic=traffic)


def micro_batch() -> RankMicroBatch:
    """Of three layers: each keeps 10 bytes of activations, gathers 4 and lets go of them, and leaves 2 of gradients."""
    forward = stretch(20, 10, GATHER, peak_gathered=4)
    backward = stretch(30, -8, REDUCE, gradients=2, peak_gradients=2, peak_gathered=4, peak_communication=5)
    return RankMicroBatch(
        embedding_forward=stretch(7, 5),
        forward=(forward,) * 3,
        loss=stretch(100, 6, gathered=6, peak_gathered=6),
        backward=(backward,) * 3,
        embedding_backward=stretch(1, -11, gathered=-6),
    )


def profile(micro_batches: int = 1) -> RankProfile:
    states = ModelStates(weights=40, gradients=2, masters=0, moments=80)
    return RankProfile(
        layers=tuple(
            RankLayer(kind="dense", count=count, parameters=10, states=states, held=10)
            for count in model_runs().counts()
        ),
        outside_parameters=5,
        outside_states=states,
        inputs=3,
        buffers=1,
        first_micro_batch=micro_batch(),
        middle_micro_batch=micro_batch() if micro_batches > 2 else None,
        last_micro_batch=micro_batch() if micro_batches > 1 else None,
        optimizer_step=stretch(9, 0),
        flops=StepFlops(forward=Counts(mlp=100), backward=Counts(mlp=200)),
        shares=(
            RankShare(count=3, first_rank=0, parameters=55, moments=600),
            RankShare(count=1, first_rank=3, parameters=50, moments=560),
        ),
    )


def model_runs() -> Shallow:
    return shallow(model(DEEP))


def classes(micro_batches: int = 1) -> tuple[RankAnalysis, ...]:
    setup = msgspec.structs.replace(SETUP, micro_batches=micro_batches)
    return rank_classes(model_runs(), setup, profile(micro_batches), "measured = formula")


def test_phases_of_the_deep_model() -> None:
    memory = classes()[0].memory
    states = 6 * 40 + 1 + 600  # weights, buffers, moments
    forward, loss, backward, embedding, update = memory.phases
    # Inputs and embedding, four layers of 10 bytes, and the fifth at its worst moment.
    assert forward.peak_bytes == states + 3 + 5 + 4 * 10 + 20
    assert (forward.layer, forward.gathered_parameters, forward.transients) == (4, 4, 16)
    assert loss.peak_bytes == states + 8 + 50 + 100
    assert (loss.activations, loss.logits_and_loss, loss.gathered_parameters) == (58, 94, 6)
    # The last layer's backward is the worst: each one further has 10 bytes less of activations and 2 more of gradients.
    assert backward.peak_bytes == states + 8 + 50 + 6 + 30
    assert (backward.layer, backward.communication_buffers, backward.gathered_parameters) == (4, 5, 10)
    assert memory.layer_backward_peak_bytes == tuple(backward.peak_bytes - 8 * further for further in (4, 3, 2, 1, 0))
    assert embedding.gradients == 10
    assert update.peak_bytes == states + 10 + 3 + 9
    assert memory.peak_bytes == loss.peak_bytes
    assert memory.states.moments == 600


def test_a_smaller_share_differs_in_its_states_alone() -> None:
    first, second = classes()
    assert (first.count, first.first_rank, second.count, second.first_rank) == (3, 0, 1, 3)
    assert first.memory.peak_bytes - second.memory.peak_bytes == 40
    assert first.parameters - second.parameters == 5


@pytest.mark.parametrize("number", [1, 2, 5])
def test_traffic_is_of_all_layers_and_micro_batches(number: int) -> None:
    found = {each.op: each for each in classes(number)[0].collectives}
    assert (found["all_gather"].count, found["all_gather"].bytes_out) == (5 * number, 40 * number)
    assert (found["reduce_scatter"].phase, found["reduce_scatter"].count) == ("backward", 5 * number)


def test_a_key_is_its_collective() -> None:
    collective = Collective("backward", "all_to_all", "ep")
    assert collective_of(collective.key) == collective


def test_sums_over_ranks() -> None:
    assert totals_over_ranks(classes(), 1).parameters == 3 * 55 + 50
    assert totals_over_ranks(classes(), 1).forward_flops == 4 * 100
    undivided = Undivided(
        parameters=100,
        copied_parameters=0,
        expert_parameters=64,
        replicated_parameters=10,
        forward_flops=1000,
        replicated_forward_flops=20,
    )
    found = undivided.over_ranks(Layout(num_gpus=24, dp=2, fsdp=3, tp=4))
    assert found.parameters == 2 * (100 + 3 * 10)  # 90 divided by 4, and 10 on each of the 4 ranks of tp
    assert found.forward_flops == 6 * (1000 + 3 * 20)
    # ep borrows the ranks of half of the replicas, then of all, so that there are fewer copies of the experts.
    assert undivided.over_ranks(Layout(num_gpus=8, dp=4, fsdp=2, ep=4)).parameters == 4 * 36 + 2 * 64
    assert undivided.over_ranks(Layout(num_gpus=8, dp=4, fsdp=2, ep=8)).parameters == 4 * 36 + 64
