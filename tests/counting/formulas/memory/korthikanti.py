"""Activation memory of GPT blocks under tensor and pipeline parallelism (Korthikanti et al. 2022, arXiv 2205.05198).

For the paper's block: LayerNorm, multi-head attention that keeps its scores, a GeLU MLP of width 4 h, dropout after
each, 16-bit activations; what norms keep beside their input (two numbers a row) is left out, as the paper does.
The simulation, run on the same block, is held against these equations.

Legend: s sequence length, b sequences in a micro-batch, h hidden size, a attention heads, t tensor-parallel size,
p pipeline stages, m interleaved stages per device, L layers.
"""

from fractions import Fraction

from torch_models.spec import Recompute

PARAMETERS_PER_LAYER = 12  # h^2 of them: 4 in attention, 8 in the MLP


def activation_bytes_per_layer(
    sequence_length: int,
    micro_batch: int,
    hidden_size: int,
    heads: int,
    *,
    tensor_parallel: int = 1,
    sequence_parallel: bool = False,
    recompute: Recompute = "none",
) -> Fraction:
    """Bytes that one layer keeps on one device for backward: the rows of the paper's table 2, equations 1 to 6.

    Without recomputation sbh (34 + 5as/h); split over t devices all but 10 sbh of it, and with sequence parallelism
    all of it. Selective recomputation leaves out the core's 5as/h, full recomputation all but the layer's input.
    """
    input_bytes = sequence_length * micro_batch * hidden_size
    core = 0 if recompute == "selective" else Fraction(5 * heads * sequence_length, hidden_size)
    if recompute == "full":
        return Fraction(2 * input_bytes)
    whole, divided = (0, 34) if sequence_parallel else (10, 24)
    return input_bytes * (whole + Fraction(divided + core, tensor_parallel))


def first_stage_activation_bytes(
    bytes_per_layer: Fraction, layers: int, *, pipeline_parallel: int = 1, interleave: int = 1
) -> Fraction:
    """Bytes on a device of the first pipeline stage, which keeps as many micro-batches as there are stages.

    L layers' worth, and with interleaved stages (1 + (p - 1) / pm) times that (§4.2.3).
    """
    more = Fraction(pipeline_parallel - 1, pipeline_parallel * interleave) if interleave > 1 else 0
    return bytes_per_layer * layers * (1 + more)


def state_bytes(layers: int, hidden_size: int, *, tensor_parallel: int = 1, bytes_per_parameter: int = 18) -> Fraction:
    """Weights, gradients and optimiser state of the blocks on one device; embeddings, norms and biases left out."""
    return Fraction(PARAMETERS_PER_LAYER * layers * hidden_size**2 * bytes_per_parameter, tensor_parallel)
