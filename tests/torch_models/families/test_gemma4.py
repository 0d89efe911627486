"""Gemma-4: heads by kind of layer, what has no module here, what is refused, heads too wide for flash attention."""

from typing import Any

import pytest
import torch
from msgspec import structs

from tests.shrunken import GEMMA4
from torch_models.errors import ConfigError, NotModelledError
from torch_models.fields.config import ForeignConfig, model_from_fields, spec_from_fields
from torch_models.modules.attention.core import causal_attention
from torch_models.parallel.checks import check_tensor_parallel, without_ring_attention
from torch_models.spec import ModelSpec

EVERY_KIND = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}


def heads_of(**fields: Any) -> list[tuple[int, int, bool]]:
    """Of each layer its key heads, the channels of a head, and whether keys are the values."""
    layers = [layer.attention for layer in spec_from_fields(GEMMA4 | fields, "x").layers]
    return [(each.num_key_value_heads, each.head_dim, each.keys_as_values) for each in layers]


def test_global_layers_have_heads_of_their_own() -> None:
    """The last layer is global whatever the config says, as in transformers."""
    assert heads_of(**EVERY_KIND) == [(4, 16, False), (2, 24, True), (2, 24, True)]
    assert heads_of(**EVERY_KIND, attention_k_eq_v=False) == [(4, 16, False), (4, 24, False), (4, 24, False)]


def test_heads_of_single_layers() -> None:
    """As transformers 5 writes them; then the fields of all global layers have no effect."""
    single = {"1": {"head_dim": 32}, "2": {"num_key_value_heads": 1}}
    padded = {f"0{number}": own for number, own in single.items()}  # to as many digits as the last layer's number has
    for given in (single, padded):
        assert heads_of(**EVERY_KIND, per_layer_config=given) == [(4, 16, False), (4, 32, True), (1, 16, True)]


def test_heads_of_single_layers_among_more_than_ten() -> None:
    """Of 12 layers transformers writes two digits: "05" is layer 5, and so is "5"."""
    assert heads_of(num_hidden_layers=12, per_layer_config={"05": {"head_dim": 32}, "11": {"head_dim": 48}}) == [
        *[(4, 16, False)] * 5,
        (4, 32, True),  # global, as every sixth layer
        *[(4, 16, False)] * 5,
        (4, 48, True),
    ]


def test_the_activation_that_transformers_reads() -> None:
    """It reads `hidden_activation`; `hidden_act` has no effect, and no default of it is stated."""
    assert spec_from_fields(GEMMA4, "x").layers[0].parallel_mlp.activation == "gelu_pytorch_tanh"
    spec = spec_from_fields(GEMMA4 | {"hidden_act": "silu"}, "x")
    assert spec.layers == spec_from_fields(GEMMA4, "x").layers
    assert "hidden_act = 'silu' (the activation is gelu_pytorch_tanh, by hidden_activation)" in spec.passed_over_fields
    assert not any("hidden_act " in field for field in spec_from_fields(GEMMA4, "x").defaulted_fields)
    assert "hidden_activation = 'gelu_pytorch_tanh'" in spec.defaulted_fields


@pytest.mark.parametrize("field", ["hidden_size_per_layer_input", "num_kv_shared_layers"])
def test_what_has_no_module_is_counted_through_transformers(field: str) -> None:
    with pytest.raises(NotModelledError, match=rf"^{field} = 1: .* have no module here; the counts come from"):
        spec_from_fields(GEMMA4 | {field: 1}, "x")
    assert isinstance(model_from_fields(GEMMA4 | {field: 1}, "x"), ForeignConfig)
    assert isinstance(model_from_fields(GEMMA4, "x"), ModelSpec)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"use_bidirectional_attention": "all"},
            "= 'all': lets a token see those after it",
        ),
        ({"per_layer_config": {"3": {}}}, "^a key of per_layer_config = '3': must be the number of a layer, 0 to 2$"),
        ({"per_layer_config": {"-1": {}}}, "^a key of per_layer_config = '-1': must be the number of a layer, 0 to 2$"),
        ({"per_layer_config": {"1": {}, "01": {}}}, "^a key of per_layer_config = '01': layer 1 is there twice$"),
        ({"num_experts": None}, "num_experts = null: must be given, since enable_moe_block is on"),
        ({"top_k_experts": 99}, r"^top_k_experts = 99: must be at most num_experts \(\d+\)"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model_from_fields(GEMMA4 | fields, "x")


def test_layouts_that_its_layers_lack() -> None:
    spec = spec_from_fields(GEMMA4, "x")
    with pytest.raises(ValueError, match="tp = 2: must be 1: layers have an MLP beside their experts"):
        check_tensor_parallel(spec.layers, spec.vocab_size, 2)
    assert without_ring_attention(spec.layers[-1]) == "a norm of its values"


def test_heads_wider_than_flash_attention_takes() -> None:
    """256 channels are torch's limit; the kernel of windows has none, and computes the same."""
    attention = spec_from_fields(GEMMA4, "x").layers[-1].attention
    rotary = structs.replace(attention.rotary, dim=8)
    wide, widest = (structs.replace(attention, head_dim=channels, rotary=rotary) for channels in (257, 256))
    assert (wide.needs_own_kernel, widest.needs_own_kernel) == (True, False)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 9, heads, 264, generator=generator) for heads in (4, 2, 2))
    fused, eager = (
        causal_attention(query, key, value, scale=0.1, kernels=kernels, heads_per_group=2)
        for kernels in ("fused", "eager")
    )
    torch.testing.assert_close(fused, eager, rtol=1e-4, atol=1e-5)
