"""GPT-2 by hand: parameters, FLOPs, and what a layer holds, with the published totals and Korthikanti's terms."""

import pytest

from counting.counts import Counts
from counting.formulas.flops import attention_core, forward_flops, head_flops
from counting.formulas.held import attention_held, feed_forward_held, layer_held, layer_norm_held, loss_held
from counting.formulas.held.forward_pass import ForwardPass
from counting.formulas.parameters import inactive_parameters, parameters
from counting.formulas.tensors import gradients_apart
from counting.setup import MicroBatch, Setup, resolve
from torch_models.errors import ConfigError
from torch_models.fields.config import read_spec

RUN = ForwardPass(MicroBatch(1, 1024), 2, "fused", "none")


# Totals of the published checkpoints, openai-community/gpt2 and gpt2-xl, without the causal masks that they store.
@pytest.mark.parametrize(
    ("config", "width", "layers", "total"), [("gpt2", 768, 12, 124_439_808), ("gpt2_xl", 1600, 48, 1_557_611_200)]
)
def test_parameters(config: str, width: int, layers: int, total: int) -> None:
    """Of a layer 4 D² + 4 D in attention, 8 D² + 5 D in the MLP, 4 D in two norms; one more norm, two tables."""
    spec = read_spec(config)
    assert parameters(spec) == Counts(
        word_embedding=50_257 * width,
        positional_embedding=1024 * width,
        attention=layers * (4 * width**2 + 4 * width),
        mlp=layers * (8 * width**2 + 5 * width),
        norm=layers * 4 * width + 2 * width,
    )
    assert parameters(spec).total == total
    assert inactive_parameters(spec.layers[0]) == 0


def test_forward_flops() -> None:
    """1,024 tokens: of each token 12 layers of 24 D² + 4 S D, and a head of 2 V D: 284,812,800."""
    spec = read_spec("gpt2")
    layer = forward_flops(spec.layers[0], 1024, 1)
    assert layer == Counts(attention=1024 * (8 * 768**2 + 4 * 1024 * 768), mlp=1024 * 16 * 768**2)
    assert attention_core(spec.layers[0].attention, 1024, 1).as_run == 4 * 1024**2 * 768
    assert head_flops(spec, 1024, 1).total == 2 * 1024 * 50_257 * 768
    assert 12 * layer.total + head_flops(spec, 1024, 1).total == 1024 * 284_812_800


def test_what_a_layer_holds() -> None:
    """Korthikanti et al. 2022, §4.1, in bytes of 16 bits: 34 s b h, of which 2 s b h are masks of dropout.

    A norm 2 s b h and two fp32 numbers a token; attention 10 s b h, with fp32 log-sum-exps of 12 heads and 24 bytes of
    random state; the MLP 18 s b h.
    """
    layer, sbh = read_spec("gpt2").layers[0], 1024 * 768
    assert layer_norm_held(1024, 768, RUN) == 2 * sbh + 8 * 1024
    assert attention_held(layer.attention, RUN) == 10 * sbh + 4 * 12 * 1024 + 24
    assert feed_forward_held(layer.feed_forward, RUN) == 18 * sbh
    assert layer_held(layer, RUN) == 32 * sbh + (16 + 48) * 1024 + 24
    assert layer_held(layer, RUN._replace(recompute="selective")) == 32 * sbh + 16 * 1024
    # Eager: probabilities in fp32 and in 16 bits, of 12 heads, and one mask; the norms are the same kernel.
    eager = layer_held(layer, RUN._replace(kernels="eager"))
    assert eager == 32 * sbh + 16 * 1024 + 1024**2 * (12 * (4 + 2) + 1)


def test_what_the_loss_adds() -> None:
    """The norm's statistics and normed hidden states; the norm's input is the last layer's output. Logits in fp32."""
    spec = read_spec("gpt2")
    expected = 8 * 1024 + 2 * 1024 * 768 + 4 * 1024 * 50_257 + 4 + 4 + 8
    assert loss_held(spec, resolve(Setup(precision="mixed"), spec)) == expected


def test_gradients_of_biases_come_with_those_of_their_weights() -> None:
    """Four projections of attention, two of the MLP, two norms; each has a weight and a bias."""
    assert gradients_apart(read_spec("gpt2").layers[0]) == 8


def test_a_sequence_longer_than_the_table() -> None:
    """The table of positions has 1,024 rows."""
    spec = read_spec("gpt2")
    assert resolve(Setup(), spec).sequence_length == 1024
    with pytest.raises(ConfigError, match=r"^gpt2: n_positions = 1024: a sequence of 1,025 tokens is longer, and the"):
        resolve(Setup(sequence_length=1025), spec)
