"""What the collectives of tensor, context and expert parallelism read and write on a rank, by stretch of the step.

The residual stream has T D numbers of w bytes. With sequence parallelism each of t ranks has T D / t of them: a block
gathers its input (all-gather: T D w / t in, T D w out) and sums its output (reduce-scatter: the reverse); backward does
the same in the other order (Korthikanti et al. 2022, arXiv 2205.05198, §4.2.2, fig. 5-6). Without it the output is
all-reduced in forward and the gradient of the input in backward (Shoeybi et al. 2019, arXiv 1909.08053, §3). A
parameter that each rank has whole, and uses on its own positions or heads, has its gradient all-reduced. The loss of a
divided vocabulary all-reduces three numbers a token in fp32: the largest logit, the sum of exponentials, and the logit
of the label. What is computed again in backward calls its collectives again.

Example: Llama-3-8B, tp 8, one sequence of 2,048 tokens in 16 bits: T D w = 2,048 x 4,096 x 2 = 16,777,216 bytes. A
layer has two blocks, so that it gathers 33,554,432 bytes in forward and as many in backward; three layers and the head
117,440,512. The loss all-reduces 3 x 4 x 2,048 = 24,576 bytes.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from counting.formulas.held import FP32, INT64
from counting.formulas.layouts.flops import CORE_AGAIN
from counting.formulas.layouts.groups import mtp_shapes
from counting.formulas.layouts.replicated import final_norm, norms_of_stream, used_apart
from counting.formulas.layouts.sharding import Shape, numbers
from counting.formulas.local.shapes import Division, division_of, local_setup
from counting.ranks.profile import Axis, Collective, CollectiveOp, RankPhase, Traffic, Traffics, total_traffic
from counting.setup import Setup
from torch_models.layout import Layout
from torch_models.spec import (
    GroupedQueryAttentionSpec,
    LayerSpec,
    MixtureOfExpertsSpec,
    ModelSpec,
    MultiHeadLatentAttentionSpec,
)

LOSS_REDUCTIONS = 3


class Sending(NamedTuple):
    """Sendings of one collective, each with these bytes."""

    operation: CollectiveOp
    axis: Axis
    bytes_in: int
    bytes_out: int
    times: int = 1


Sendings = Iterable[Sending]


def counted(phase: RankPhase, calls: Sendings) -> Traffics:
    """Return the traffic of `calls` in one phase."""
    total: Traffics = {}
    for operation, axis, bytes_in, bytes_out, times in calls:
        if times:
            key = Collective(phase, operation, axis).key
            once = Traffic(calls=times, bytes_in=bytes_in * times, bytes_out=bytes_out * times)
            total[key] = total.get(key, Traffic()) + once
    return total


class StretchTraffic(NamedTuple):
    """The traffic of each stretch beside fully_shard's; of layers, that of each kind in the order of `layer_groups`."""

    embedding_forward: Traffics
    forward: list[Traffics]
    loss: Traffics
    backward: list[Traffics]
    embedding_backward: Traffics


def compute_traffic(spec: ModelSpec, setup: Setup, layout: Layout) -> StretchTraffic:
    """Return what one micro-batch sends beside what fully_shard sends."""
    kinds = [layer for layer, _ in spec.layer_groups()]
    parts: list[_Part] = []
    setup, division = local_setup(setup, layout.cp), division_of(layout)
    if layout.tp > 1:
        parts.append(_TensorParallel(spec, setup, division))
    if layout.ep > 1:
        parts.append(_ExpertParallel(spec, setup, division))
    if layout.cp > 1:
        parts.append(_ContextParallel(spec, setup, division))

    def forward(calls: Callable[[_Part], Sendings]) -> Traffics:
        return total_traffic((counted("forward", calls(part)), 1) for part in parts)

    def backward(calls: Callable[[_Part], Sendings]) -> Traffics:
        return total_traffic((counted("backward", calls(part)), 1) for part in parts)

    def layer_forward(layer: LayerSpec) -> Traffics:
        return forward(lambda part: part.layer_forward(layer))

    def layer_backward(layer: LayerSpec) -> Traffics:
        return backward(lambda part: part.layer_backward(layer))

    return StretchTraffic(
        forward(lambda part: part.embedding_forward()),
        list(map(layer_forward, kinds)),
        forward(lambda part: part.loss_forward()) | backward(lambda part: part.loss_backward()),
        list(map(layer_backward, kinds)),
        backward(lambda part: part.embedding_backward()),
    )


def gradient_traffic(spec: ModelSpec, setup: Setup, layout: Layout) -> StretchTraffic:
    """Return the part of `compute_traffic` that sums the gradients of parameters which each rank of tp has whole."""
    kinds = [layer for layer, _ in spec.layer_groups()]
    if layout.tp == 1:
        return StretchTraffic({}, [{} for _ in kinds], {}, [{} for _ in kinds], {})
    part = _TensorParallel(spec, local_setup(setup, layout.cp), division_of(layout))
    return StretchTraffic(
        {},
        [{} for _ in kinds],
        counted("backward", part.loss_gradients()),
        [counted("backward", part.layer_gradients(layer)) for layer in kinds],
        {},
    )


class _TensorParallel:
    """The collectives over tp of the parts of one micro-batch."""

    def __init__(self, spec: ModelSpec, setup: Setup, division: Division) -> None:
        self.spec = spec
        self.setup = setup
        self.tp = division.tp
        self.by_position = division.sequence_parallel
        self.width = setup.precision_recipe.activation_bytes
        self.stream = setup.tokens * spec.hidden_size * self.width
        self.mtp_layers = spec.mtp_layers if setup.mtp else ()

    # --- One block ---------------------------------------------------------------------------------------------------

    def _gather(self) -> Sending:
        return Sending("all_gather", "tp", self.stream // self.tp, self.stream)

    def _scatter(self) -> Sending:
        return Sending("reduce_scatter", "tp", self.stream, self.stream // self.tp)

    def _sum(self) -> Sending:
        return Sending("all_reduce", "tp", self.stream, self.stream)

    def _input(self) -> list[Sending]:
        return [self._gather()] if self.by_position else []

    def _input_gradient(self) -> list[Sending]:
        return [self._scatter()] if self.by_position else [self._sum()]

    def _output(self) -> list[Sending]:
        return [self._scatter()] if self.by_position else [self._sum()]

    def _output_gradient(self) -> list[Sending]:
        return [self._gather()] if self.by_position else []

    def _gradients(self, shapes: Iterable[Shape]) -> Iterator[Sending]:
        """All-reduces of the gradients of parameters that each rank has whole."""
        for shape in shapes:
            size = numbers(shape) * self.width
            yield Sending("all_reduce", "tp", size, size)

    # --- Layers ------------------------------------------------------------------------------------------------------

    def layer_forward(self, layer: LayerSpec) -> list[Sending]:
        """Attention and feed-forward."""
        return [*[*self._input(), *self._output()] * 2, *self._width_norms(layer)]

    def layer_backward(self, layer: LayerSpec) -> list[Sending]:
        """Backward of both, after what is called again in backward; then parameters that are whole."""
        again: list[Sending] = []
        match layer.recompute_in(self.setup.recompute):
            case "full":
                again = self.layer_forward(layer)
            case "per_op":  # the results of reduce-scatters are kept
                outputs = [] if self.by_position else self._output()
                again = [*[*self._input(), *outputs] * 2, *self._width_norms(layer)]
        blocks = [*self._output_gradient(), *self._input_gradient()] * 2
        return [*again, *blocks, *self._width_norms(layer), *self._gradients(self._whole(layer))]

    def layer_gradients(self, layer: LayerSpec) -> Iterator[Sending]:
        """The gradients of the parameters that each rank has whole."""
        return self._gradients(self._whole(layer))

    def _width_norms(self, layer: LayerSpec) -> list[Sending]:
        """Norms over the width of all heads: one sum a token in fp32, of queries and of keys, in either pass."""
        attention = layer.attention
        if not isinstance(attention, GroupedQueryAttentionSpec) or attention.query_key_norm != "width":
            return []
        size = FP32 * self.setup.tokens
        return [Sending("all_reduce", "tp", size, size, 2)]

    def _whole(self, layer: LayerSpec) -> list[Shape]:
        """Parameters with a term of their gradient on each rank."""
        found = norms_of_stream(layer) if self.by_position else []
        return [*found, *used_apart(layer.attention), *used_apart(layer.feed_forward)]

    # --- Embedding, head and loss ------------------------------------------------------------------------------------

    def embedding_forward(self) -> list[Sending]:
        """Each rank looks up its own words."""
        return self._output()

    def embedding_backward(self) -> list[Sending]:
        """The gradient of all positions."""
        return self._output_gradient()

    def loss_forward(self) -> list[Sending]:
        """The head of each prediction depth, and the layers of multi-token prediction."""
        found = self._head_forward() * (1 + len(self.mtp_layers))
        for layer in self.mtp_layers:
            found += [*self.embedding_forward(), *self.layer_forward(layer)]
        return found

    def loss_backward(self) -> list[Sending]:
        """Backward of the same, and of the final norm."""
        width = self.spec.hidden_size
        found = [*self._head_backward() * (1 + len(self.mtp_layers))]
        if self.by_position:
            found += self._gradients(final_norm(self.spec))
        for layer in self.mtp_layers:
            found += [*self.layer_backward(layer), *self.embedding_backward()]
            if self.by_position:
                found += self._gradients(mtp_shapes(width))
        return found

    def loss_gradients(self) -> list[Sending]:
        """Those of the final norm, and of multi-token prediction."""
        width, found = self.spec.hidden_size, list[Sending]()
        if self.by_position:
            found += self._gradients(final_norm(self.spec))
        for layer in self.mtp_layers:
            found += self.layer_gradients(layer)
            if self.by_position:
                found += self._gradients(mtp_shapes(width))
        return found

    def _head_forward(self) -> list[Sending]:
        return [*self._input(), *self._loss_sums()]

    def _head_backward(self) -> list[Sending]:
        again = self._loss_sums() if self.setup.loss_chunk is not None else []
        return [*again, *self._input_gradient()]

    def _loss_sums(self) -> list[Sending]:
        """Three sums for each chunk of tokens; the last chunk may be shorter."""
        tokens = self.setup.tokens
        chunk = self.setup.loss_chunk or tokens
        whole, rest = divmod(tokens, chunk)
        calls = [Sending("all_reduce", "tp", FP32 * chunk, FP32 * chunk, LOSS_REDUCTIONS * whole)]
        if rest:
            calls.append(Sending("all_reduce", "tp", FP32 * rest, FP32 * rest, LOSS_REDUCTIONS))
        return calls


class _ExpertParallel:
    """The exchanges of rows over ep of the parts of one micro-batch, each rank's rows sorted by expert.

    A rank sends N = T K rows of D numbers and receives M: as many, if routing is balanced. Before, it sends the number
    of rows of each of E experts in int64. The outputs travel back, and backward exchanges the gradients of both ways
    (Lepikhin et al. 2020, arXiv 2006.16668, §3.2).

    Example: DeepSeek-V3, 4,096 tokens, K = 8, D = 7,168, E = 256, 16 bits: 4,096 x 8 x 7,168 x 2 = 469,762,048 bytes
    each way; forward reads twice as many and 8 x 256 of counts: 939,526,144.
    """

    def __init__(self, spec: ModelSpec, setup: Setup, division: Division) -> None:
        self.setup = setup
        self.division = division
        self.mtp_layers = spec.mtp_layers if setup.mtp else ()

    def layer_forward(self, layer: LayerSpec) -> list[Sending]:
        """The counts, the rows, and their outputs."""
        if not isinstance(layer.feed_forward, MixtureOfExpertsSpec):
            return []
        counts = INT64 * layer.feed_forward.router.num_experts
        return [Sending("all_to_all", "ep", counts, counts), *self._ways(layer)]

    def layer_backward(self, layer: LayerSpec) -> list[Sending]:
        """The gradients of the outputs and of the rows, after the forward pass once more with full recompute.

        Recomputation by operation keeps what all-to-all brings.
        """
        if not isinstance(layer.feed_forward, MixtureOfExpertsSpec):
            return []
        again = self.layer_forward(layer) if layer.recompute_in(self.setup.recompute) == "full" else []
        return [*again, *self._ways(layer)]

    def _ways(self, layer: LayerSpec) -> list[Sending]:
        """There and back."""
        assert isinstance(layer.feed_forward, MixtureOfExpertsSpec)
        rows = self.setup.tokens * layer.feed_forward.router.top_k
        of_row = layer.hidden_size * self.setup.precision_recipe.activation_bytes
        sent, received = rows * of_row, self.division.received_rows(rows) * of_row
        return [Sending("all_to_all", "ep", sent, received), Sending("all_to_all", "ep", received, sent)]

    def embedding_forward(self) -> list[Sending]:
        """Nothing is exchanged."""
        return []

    def embedding_backward(self) -> list[Sending]:
        """Nothing is exchanged."""
        return []

    def loss_forward(self) -> list[Sending]:
        """The layers of multi-token prediction."""
        return [call for layer in self.mtp_layers for call in self.layer_forward(layer)]

    def loss_backward(self) -> list[Sending]:
        """Backward of the same."""
        return [call for layer in self.mtp_layers for call in self.layer_backward(layer)]


class _ContextParallel:
    """The collectives over cp of the parts of one micro-batch: keys and values, and their gradients.

    Each of c ranks has KV numbers of keys and values in a layer. Ring attention gathers those of all ranks at once, w c
    KV bytes out, in forward and again in backward. The gradients go round the ring in fp32, one step after each of the
    c steps of backward: c times 4 KV bytes (`torch/distributed/tensor/experimental/_context_parallel/_attention.py`).

    Example: Llama-3-8B, cp 4, one sequence of 8,192 tokens in 16 bits: KV = 2 x 2,048 x 8 x 128 = 4,194,304. A layer
    gathers 2 x 4 KV = 33,554,432 bytes in either pass, and passes on 4 x 4 KV = 67,108,864.
    """

    def __init__(self, spec: ModelSpec, setup: Setup, division: Division) -> None:
        self.setup = setup
        self.division = division
        self.mtp_layers = spec.mtp_layers if setup.mtp else ()

    def layer_forward(self, layer: LayerSpec) -> list[Sending]:
        """Keys and values."""
        size = self._numbers(layer) * self.setup.precision_recipe.activation_bytes
        return [Sending("all_gather", "cp", size, size * self.division.cp)]

    def layer_backward(self, layer: LayerSpec) -> list[Sending]:
        """Keys and values again, and once more if the core of attention is recomputed; then their gradients."""
        size, gather = self._numbers(layer) * FP32, self.layer_forward(layer)
        again = gather if layer.recompute_in(self.setup.recompute) in CORE_AGAIN else []
        return [*again, *gather, Sending("all_to_all", "cp", size, size, self.division.cp)]

    def _numbers(self, layer: LayerSpec) -> int:
        """Keys and values of this rank's positions and heads."""
        attention = layer.attention
        if isinstance(attention, MultiHeadLatentAttentionSpec):
            of_token = attention.num_attention_heads * (attention.qk_head_dim + attention.v_head_dim)
        else:
            of_token = attention.num_key_value_heads * 2 * attention.head_dim
        return self.setup.tokens * of_token // self.division.tp

    def embedding_forward(self) -> list[Sending]:
        """Nothing is sent."""
        return []

    def embedding_backward(self) -> list[Sending]:
        """Nothing is sent."""
        return []

    def loss_forward(self) -> list[Sending]:
        """The layers of multi-token prediction."""
        return [call for layer in self.mtp_layers for call in self.layer_forward(layer)]

    def loss_backward(self) -> list[Sending]:
        """Backward of the same."""
        return [call for layer in self.mtp_layers for call in self.layer_backward(layer)]


_Part = _TensorParallel | _ExpertParallel | _ContextParallel
