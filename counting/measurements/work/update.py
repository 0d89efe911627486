"""What follows the backward pass, op by op: clipping, the optimiser's update, filling gradients with zeros.

Torch's optimisers run on meta tensors as in `counting.measurements.optimizer`, the layers of each kind once; their ops
count for all layers of that kind.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from counting.measurements.live_bytes import LiveBytes
from counting.measurements.optimizer import MASTERS, Trained, matrices_apart, scale, update_together
from counting.measurements.parameters import updated_parameters
from counting.measurements.work.recorder import Recorder
from counting.measurements.work.records import summarise, total
from counting.recipes import ModelStates, Optimizer, Precision, TrainedTensor
from counting.work import Op

Groups = Sequence[tuple[Sequence[Trained], int]]  # parameters, and how many equal ones of each the model has


def update_ops(groups: Groups, precision: Precision, optimizer: Optimizer) -> tuple[Op, ...]:
    """The ops of a step of the optimiser, which torch must have. Call it inside `measuring`.

    An optimiser of one kernel, or of ops on lists, is called once for the parameters of each layer: a launch takes
    about as many. With master weights the optimisers are called for each parameter apart, as in `WholeUpdate`.
    """
    together = optimizer.name != "muon" and (optimizer.all_at_once or not precision.master_bytes)
    ops: list[Op] = []
    for trained, times in groups:
        for part, number in [(trained, 1)] if together else _apart(trained, optimizer):
            if part:
                recorder = Recorder()
                update_together(part, precision, optimizer, recorder)
                (stretch,) = recorder.take()
                ops += total(summarise(stretch), number * times)
    return total(ops)


def _apart(trained: Sequence[Trained], optimizer: Optimizer) -> Iterator[tuple[list[Trained], int]]:
    """Each parameter alone, of equal ones one, and the number of its updates."""
    equal: dict[TrainedTensor, Trained] = {each.tensor: each for each in trained}
    numbers = Counter(each.tensor for each in trained)
    return (([each], numbers[tensor] * matrices_apart(tensor, optimizer)) for tensor, each in equal.items())


def recipe_op(states: ModelStates, precision: Precision, optimizer: Optimizer) -> Op:
    """The update of an optimiser or of formats that torch does not run, as one kernel, from the bytes of the states.

    It reads gradients, moments, and masters or, without them, weights; it writes moments, weights and masters.
    """
    updated = states.masters or states.weights
    return Op(
        kind="memory",
        name=optimizer.name,
        bytes_read=states.gradients + states.moments + updated,
        bytes_written=states.moments + states.masters + states.weights,
    )


def clipping_ops(groups: Groups) -> tuple[Op, ...]:
    """The ops of clipping the gradients of the whole model together. Call it inside `measuring`."""
    leaves = []
    for gradient in _all_gradients(groups):
        leaf = gradient.detach()
        leaf.grad = gradient
        leaves.append(leaf)
    recorder = Recorder()
    with LiveBytes(leaves, recorder) as tracker, recorder.of(tracker):
        scale(leaves)
        recorder.cut()
    return summarise(recorder.take()[0])


def zeroing_ops(groups: Groups) -> tuple[Op, ...]:
    """The ops that fill all gradients with zeros, as torch's optimisers do with `set_to_none=False`."""
    gradients, recorder = list(_all_gradients(groups)), Recorder()
    with LiveBytes(gradients, recorder) as tracker, recorder.of(tracker):
        torch._foreach_zero_(gradients)
        recorder.cut()
    return summarise(recorder.take()[0])


def _all_gradients(groups: Groups) -> Iterator[Tensor]:
    """Gradients like those of each parameter of the whole model, each a tensor of its own."""
    return (torch.empty_like(each.gradient) for trained, times in groups for _ in range(times) for each in trained)


def record_sums(module: nn.Module, recorder: Recorder) -> list[torch.utils.hooks.RemovableHandle]:
    """Record that each complete gradient is added to a buffer in fp32, as recipes with gradients apart do.

    Torch has no such buffers, so no op does it. Returns the hooks that do.
    """

    def add(parameter: Tensor) -> None:
        gradient = parameter.grad
        assert gradient is not None
        recorder.added_to_buffer(gradient, MASTERS)

    return [parameter.register_post_accumulate_grad_hook(add) for parameter in updated_parameters(module)]
