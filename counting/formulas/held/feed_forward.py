"""Bytes that the feed-forward part of a layer holds for backward: one formula per spec type."""

from functools import singledispatch

from counting.formulas.held.forward_pass import FP32, INT32, INT64, ForwardPass, norm_held
from torch_models.spec import ClampedMLPSpec, FeedForwardSpec, GatedMLPSpec, MixtureOfExpertsSpec, MLPSpec, RouterSpec


@singledispatch
def feed_forward_held(spec: FeedForwardSpec, run: ForwardPass) -> int:
    """Return bytes that the feed-forward block holds, its input included if it holds it."""
    raise AssertionError(f"no formula of what {type(spec).__name__} holds")


@feed_forward_held.register
def _(spec: GatedMLPSpec, run: ForwardPass) -> int:
    """down(activation(gate(x)) * up(x)): T (D + 4 F) numbers; biases hold nothing.

    - x: the input of gate and up, for their weights' gradients;
    - gate: the input of the activation function;
    - activated, up: the factors of the elementwise product;
    - hidden: the product, which is the input of down, for its weight's gradient.
    """
    x = run.width * run.tokens * spec.hidden_size
    gate = activated = up = hidden = run.width * run.tokens * spec.intermediate_size
    return x + gate + activated + up + hidden


@feed_forward_held.register
def _(spec: MLPSpec, run: ForwardPass) -> int:
    """down(activation(up(x))): T (D + 2 F) numbers; biases hold nothing.

    - x: the input of up, for its weight's gradient;
    - up: the input of the activation function;
    - hidden: its output, which is the input of down, for its weight's gradient.

    With F = 4 D it is 9 D numbers a token. Korthikanti et al. 2022 (arXiv 2205.05198, §4.1) have 18 s b h bytes for
    them, and s b h more for the mask of dropout.
    """
    x = run.width * run.tokens * spec.hidden_size
    up = hidden = run.width * run.tokens * spec.intermediate_size
    return x + up + hidden


@feed_forward_held.register
def _(spec: MixtureOfExpertsSpec, run: ForwardPass) -> int:
    """Router, routed experts, and shared experts as one MLP.

    Routed experts hold copies of the input's rows. In 16 bits the router holds an fp32 copy of the input. In fp32 it
    holds the input itself, which shared experts hold too, so it counts once. With a gate of the shared experts:

    - ungated: their output, for the gradient of the gate;
    - gate: the sigmoid of one score per token, for its own gradient and for that of the ungated output. The score's
      product needs the input, which the shared experts hold.
    """
    held = router_held(spec.router, run) + routed_experts_held(spec, run)
    if spec.shared_experts is None:
        return held
    same_input = FP32 * run.tokens * spec.router.hidden_size if run.width == FP32 else 0
    ungated = run.width * run.tokens * spec.router.hidden_size if spec.shared_expert_gate else 0
    gate = run.width * run.tokens if spec.shared_expert_gate else 0
    return held + feed_forward_held(spec.shared_experts, run) - same_input + ungated + gate


def router_held(spec: RouterSpec, run: ForwardPass) -> int:
    """Return bytes that the router holds; it computes in fp32, whatever the format of the activations.

    - x: its input in fp32, for the weight's gradient;
    - weight: an fp32 copy, for the input's gradient; 0 if weights are in fp32, because the weight itself is held;
    - scores: the output of sigmoid or softmax over E experts, for its gradient;
    - choice: the indices of K experts, for the gradients of their scores; the selection holds nothing else;
    - normalisation: if the K weights are divided by their sum, these weights and the sum;
    - scaling: with learned scales, the norm of the input, whose output `x` is, and the factors of the product of K
      weights and scales.
    """
    x = FP32 * run.tokens * spec.hidden_size
    weight = 0 if run.width == FP32 else FP32 * spec.num_experts * spec.hidden_size
    scores = FP32 * run.tokens * spec.num_experts
    choice = INT64 * run.tokens * spec.top_k
    normalisation = FP32 * run.tokens * (spec.top_k + 1) if spec.norm_topk_prob else 0
    scaling = 0
    if spec.learned_scales:
        scaling = norm_held(run.tokens, spec.hidden_size, run) + 2 * FP32 * run.tokens * spec.top_k
    return x + weight + scores + choice + normalisation + scaling


def routed_experts_held(spec: MixtureOfExpertsSpec, run: ForwardPass) -> int:
    """Return bytes that routed experts hold: T K rows, one per token and chosen expert, sorted by expert.

    - gathered: the tokens' rows, the input of the first product, for its weight's gradient;
    - hidden: `expert_hidden_numbers` numbers for each row;
    - outputs: the experts' outputs, for the gradients of the router weights that multiply them. Where these multiply
      the inputs, the outputs are not held, but the inputs before and after that are;
    - weights: these router weights, in the format of the rows, for the gradients of the outputs or the inputs;
    - token, order: the index of each row's token, and of its weight before sorting, to route gradients back;
    - experts: if experts have biases, the index of each row's expert, for the gradients of the biases;
    - ends: the end of each expert's rows, an input of the grouped products in backward.
    """
    rows = run.tokens * spec.router.top_k
    gathered = outputs = run.width * rows * spec.router.hidden_size
    hidden = run.width * rows * expert_hidden_numbers(spec.expert)
    weights = run.width * rows
    token = order = INT64 * rows
    experts = INT64 * rows if isinstance(spec.expert, ClampedMLPSpec) else 0
    ends = INT32 * spec.router.num_experts
    return gathered + hidden + outputs + weights + token + order + experts + ends


@singledispatch
def expert_hidden_numbers(spec: GatedMLPSpec | ClampedMLPSpec) -> int:
    """Return how many numbers an expert holds per row between its two products, the second's input included."""
    raise AssertionError(f"no formula of what an expert of {type(spec).__name__} holds")


@expert_hidden_numbers.register
def _(spec: GatedMLPSpec) -> int:
    """4 F: gate and up, which share one tensor, the activated gate, and the product of activated gate and up."""
    gate_and_up, activated, product = 2 * spec.intermediate_size, spec.intermediate_size, spec.intermediate_size
    return gate_and_up + activated + product


@expert_hidden_numbers.register
def _(spec: ClampedMLPSpec) -> int:
    """7 F for (up + 1) * (gate * sigmoid(alpha gate)), gate and up clamped.

    Gate and up before clamping, which share one tensor, to find the clamped numbers; the clamped gate; the output of
    sigmoid, for its gradient; the product of clamped gate and sigmoid; up + 1; and the product of the last two.
    """
    gate_and_up = 2 * spec.intermediate_size
    gate = sigmoid = gated = up_plus_one = product = spec.intermediate_size
    return gate_and_up + gate + sigmoid + gated + up_plus_one + product
