"""fully_shard's schedule by hand, on groups of a few bytes."""

import pytest

from counting.formulas.layouts.formats import FP32, MIXED
from counting.formulas.layouts.groups import group_of
from counting.formulas.layouts.schedule import Rank, Unit
from counting.formulas.layouts.sharding import Sharding
from counting.ranks.profile import Traffic
from counting.step.profile import Moment, Stretch

TWO = Sharding(2, 1, "fsdp", "dp")
SHAPES = ((4, 3), (2,))  # 14 numbers, 7 on each of two ranks


def unit(sharding: Sharding = TWO, *, reshards: bool = True, module: str = "layer") -> Unit:
    return Unit(group_of(SHAPES, sharding, MIXED), (module,), reshards=reshards)


def compute(*, peak: int, net: int, gradients: int = 0) -> Moment:
    return Moment(hook=None, peak=peak, peak_gradients=0, peak_released=0, net=net, gradients=gradients, released=0)


def test_forward_of_two_layers() -> None:
    """The flat buffer of a layer is freed after the next layer's copy.

    Gathered are 14 numbers in 16 bits: 28 bytes; a rank's converted shards have 14. First layer: 14 + 28, then 28 + 28
    bytes; the pass adds 5 while 28 + 28 are there; at its end the parameters are freed, and the buffer stays. Second
    layer: the first buffer, its own, and its parameters, 3 x 28, of which 28 were there before.
    """
    rank, first, second = Rank(MIXED), unit(), unit()
    gathered = {"forward all_gather fsdp": Traffic(calls=1, bytes_in=14, bytes_out=28)}
    rank.pre_forward(first, "layer", None, has_gradient=True)
    rank.run(compute(peak=5, net=5))
    rank.post_forward(first, "layer", None)
    stretch = rank.end({})
    assert stretch.memory == Stretch(peak=61, net=33, peak_gathered=28, peak_communication=28, communication=28)
    assert stretch.traffic == gathered
    rank.pre_forward(second, "layer", None, has_gradient=True)
    rank.run(compute(peak=5, net=5))
    rank.post_forward(second, "layer", None)
    assert rank.end({}).memory == Stretch(peak=56, net=5, peak_gathered=28, peak_communication=28)
    rank.finish_forward([first, second], None)
    assert rank.end({}).memory == Stretch(peak=0, net=-28, communication=-28)


def test_backward_of_two_layers() -> None:
    """A layer's backward gathers the one before it, and frees the buffer of the reduction after it.

    Second layer, gathered by its own backward: 28 + 28; then the first layer's buffer, 14 + 28, beside its parameters.
    The pass adds 9, of which 28 are gradients at its end. Then its parameters are freed, 56 bytes of gradients in fp32
    are copied to one buffer, the gradients are freed but for the last (4 bytes), and 28 bytes are this rank's part.
    """
    rank, first, second = Rank(MIXED), unit(), unit()
    for each in (first, second):
        rank.pre_forward(each, "layer", None, has_gradient=True)
        rank.post_forward(each, "layer", None)
    rank.finish_forward([first, second], None)
    rank.end({})
    rank.phase = "backward"
    rank.pre_backward(second)
    assert (rank.gathered, rank.communication, rank.peak) == (28, 28, 28 + 14 + 28)
    rank.run(compute(peak=40, net=30, gradients=28))
    assert rank.peak == 40 + 28 + 28
    rank.post_backward(second)
    # Activations 2, gradients 28, the first layer's flat buffer 28, and 56 reduced; later 4, 28 of the result.
    assert rank.peak == 2 + 28 + 28 + 56 + 4
    stretch = rank.end({})
    assert stretch.memory.net == 2 + 28 + 28 + 56
    assert (stretch.memory.gradients, stretch.memory.communication) == (28, 28 + 56)
    assert stretch.traffic == {
        "backward all_gather fsdp": Traffic(calls=2, bytes_in=28, bytes_out=56),
        "backward reduce_scatter fsdp": Traffic(calls=1, bytes_in=56, bytes_out=28),
    }
    rank.pre_backward(first)
    rank.run(compute(peak=0, net=28, gradients=28))
    rank.post_backward(first)
    stretch = rank.end({})
    assert (stretch.memory.gradients, stretch.memory.communication) == (28, -28)  # the buffer was replaced
    assert "backward all_gather fsdp" not in stretch.traffic
    rank.finish_backward([first, second])
    assert rank.end({}).memory == Stretch(peak=0, net=-56, communication=-56)


def test_parameters_that_stay_gathered() -> None:
    """ZeRO 2: freed only after backward, which gathers nothing."""
    rank, only = Rank(MIXED), unit(reshards=False)
    rank.pre_forward(only, "layer", None, has_gradient=True)
    rank.post_forward(only, "layer", None)
    rank.finish_forward([only], None)
    assert rank.end({}).memory.gathered == 28
    rank.phase = "backward"
    rank.pre_backward(only)
    assert rank.peak == 0
    rank.run(compute(peak=28, net=28, gradients=28))
    rank.post_backward(only)
    assert rank.end({}).memory.gathered == -28


def test_whole_gradients_over_two_micro_batches() -> None:
    """ZeRO 1: 28 bytes in 16 bits become 56 in fp32, tensor by tensor; the second micro-batch adds to them.

    Conversion: 48 bytes beside 28; then 4 are left of 16 bits, and 8 more. The reduction reads 56 bytes from them.
    """
    rank, only = Rank(MIXED), unit()
    rank.phase = "backward"
    rank.synchronises = False
    rank.run(compute(peak=28, net=28, gradients=28))
    rank.post_backward(only)
    assert (rank.peak, rank.gradients) == (28 + 48, 28)
    rank.finish_backward([only])
    stretch = rank.end({})
    assert (stretch.memory.net, stretch.memory.gradients, stretch.traffic) == (56, 56, {})
    rank.synchronises = True
    rank.run(compute(peak=28, net=28, gradients=28))
    rank.post_backward(only)
    # The gradients of this micro-batch are freed; 56 more are read from the 56 that were there; the last has 8 bytes.
    assert rank.peak == 56
    stretch = rank.end({})
    assert (stretch.memory.gradients, stretch.memory.communication) == (28 - 56, 56)


def test_replicas_keep_the_sum_until_the_end() -> None:
    """From the second micro-batch on, the buffer of the all-reduce is added to the gradient, and kept."""
    rank, only = Rank(MIXED), unit(TWO._replace(replicas=3))
    rank.phase = "backward"
    for communication in (56, 56 + 28):
        rank.run(compute(peak=28, net=28, gradients=28))
        rank.post_backward(only)
        assert rank.communication == communication
        assert rank.traffic["backward all_reduce dp"][1:] == [28, 28]
        rank.finish_backward([only])
        stretch = rank.end({})
        assert stretch.memory.communication == 0


def test_one_shard_is_copied() -> None:
    """14 numbers in fp32 are converted tensor by tensor, 24 and 4 bytes; the converted one is freed by the next."""
    rank, only = Rank(MIXED), unit(Sharding(1, 2, "fsdp", "dp"))
    rank.pre_forward(only, "layer", None, has_gradient=True)
    assert rank.peak == 24 + 24 + 4  # the second converted tensor beside the first and its copy
    assert (rank.gathered, rank.communication, rank.traffic) == (28, 0, {})


def test_one_scaled_shard() -> None:
    """Experts with one shard are divided by a factor: one buffer more, as large as the input."""
    rank, only = Rank(MIXED), unit(Sharding(1, 1, "expert_fsdp", "expert_dp", scaled=True))
    rank.phase = "backward"
    rank.run(compute(peak=28, net=28, gradients=28))
    rank.post_backward(only)
    assert rank.peak == 56 + 56 + 56
    assert rank.traffic == {}


def test_columns_are_rearranged() -> None:
    """Slices of the second dimension: one copy more when they are gathered, and one of each gradient before reduction.

    Two matrices of 2 x 4 and 2 x 2 in fp32: 32 and 16 bytes; the last gradient itself stays to the end.
    """
    sharding = Sharding(2, 1, "expert_fsdp", "expert_dp", second_dimension=True, scaled=True)
    only = Unit(group_of(((2, 4), (2, 2)), sharding, FP32), ("experts",), reshards=True)
    rank = Rank(FP32)
    rank.pre_forward(only, "experts", None, has_gradient=True)
    assert rank.peak == 48 + 48 + 48
    rank.post_forward(only, "experts", None)
    rank.finish_forward([only], None)
    rank.end({})
    rank.phase = "backward"
    rank.run(compute(peak=48, net=48, gradients=48))
    rank.post_backward(only)
    assert rank.peak == 16 + (32 + 16) + 48  # the last gradient, the copies, the flat buffer
    assert rank.end({}).memory.net == 24 + 48


def test_the_head_runs_again_for_each_depth() -> None:
    """A group of norm and head whose head alone runs again is completed at the end of forward."""
    rank = Rank(MIXED)
    ends = Unit(group_of(SHAPES, TWO, MIXED), ("norm", "head"), reshards=False)
    for module in ("norm", "head"):
        rank.pre_forward(ends, module, (module, 0), has_gradient=True)
        rank.post_forward(ends, module, (module, 0))
    assert (ends.after, ends.before) == ({("norm", 0)}, {("head", 0)})
    rank.pre_forward(ends, "head", ("head", 1), has_gradient=True)
    rank.post_forward(ends, "head", ("head", 1))
    assert ends.after == {("norm", 0), ("head", 1)}
    rank.finish_forward([ends], ("model", 0))
    assert ends.before == {("head", 0), ("model", 0)}
    assert ends.indices == [0, 1]
    rank.phase = "backward"
    rank.pre_backward(ends)
    rank.post_backward(
        ends, has_gradients=False
    )  # after the head of depth 1: no gradient is whole, parameters are freed
    assert (rank.gathered, ends.reduced) == (0, False)
    rank.pre_backward(ends)
    assert rank.gathered == 28
    rank.post_backward(ends)
    assert ends.reduced


@pytest.mark.parametrize("begun", [False, True])
def test_experts_run_again_in_backward(begun: bool) -> None:
    """With full recompute: parameters stay; the flat buffer is freed at once if backward of the experts has begun."""
    rank, experts = Rank(MIXED), unit(module="experts")
    rank.pre_forward(experts, "experts", None, has_gradient=True)
    rank.post_forward(experts, "experts", None)
    rank.finish_forward([experts], None)
    rank.phase = "backward"
    rank.end({})
    if begun:
        rank.pre_backward(experts)
    rank.pre_forward(experts, "experts", None, has_gradient=True)
    assert (rank.gathered, rank.communication) == (28, 0 if begun else 28)
    rank.post_forward(experts, "experts", None)
    assert (rank.gathered, rank.communication) == (28, 0)
    assert len(rank.order) == 1  # the second run is not one that backward will undo
