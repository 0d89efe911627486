"""GPT-2: what its fields may say, and checkpoints as they are published."""

from pathlib import Path
from typing import Any

import pytest
import torch

from counting.analysis import analyze
from counting.setup import Setup, resolve
from tests.checkpoints import State, analysed, assert_same_tensors, by_checkpoint, native_state, write
from tests.shrunken import GPT2
from torch_models import build, load_checkpoint
from torch_models.errors import ArgumentError, CheckpointError, ConfigError, NotModelledError
from torch_models.families.gpt2 import Config
from torch_models.fields.config import ForeignConfig, model_from_fields, read_spec, spec_from_fields
from torch_models.fields.stored_names import Place, StoredName, places_of

PARAMETERS = 96 * 64 + 4096 * 64 + 3 * (4 * 64**2 + 4 * 64 + 2 * 64 * 112 + 112 + 64 + 4 * 64) + 2 * 64


def published(state: State, prefix: str = "") -> State:
    """The tensors of a native model as OpenAI's weights are published: matrices (in, out), q, k and v in one."""
    found: State = {
        f"{prefix}wte.weight": state["model.embed_tokens.weight"],
        f"{prefix}wpe.weight": state["model.embed_tokens.positions.weight"],
        f"{prefix}ln_f.weight": state["model.norm.weight"],
        f"{prefix}ln_f.bias": state["model.norm.bias"],
    }
    for layer in range(3):
        ours, theirs = f"model.layers.{layer}.", f"{prefix}h.{layer}."
        for kind in ("weight", "bias"):
            found[f"{theirs}ln_1.{kind}"] = state[f"{ours}input_layernorm.{kind}"]
            found[f"{theirs}ln_2.{kind}"] = state[f"{ours}post_attention_layernorm.{kind}"]
            for name, own in (("attn.c_proj", "self_attn.o"), ("mlp.c_fc", "mlp.up"), ("mlp.c_proj", "mlp.down")):
                found[f"{theirs}{name}.{kind}"] = state[f"{ours}{own}_proj.{kind}"].t().contiguous()
            joined = torch.cat([state[f"{ours}self_attn.{name}_proj.{kind}"] for name in "qkv"])
            found[f"{theirs}attn.c_attn.{kind}"] = joined.t().contiguous()
        found[f"{theirs}attn.bias"] = torch.ones(1, 1, 64, 64)  # the causal mask
        found[f"{theirs}attn.masked_bias"] = torch.tensor(-1e4)
    return found


@pytest.mark.parametrize("prefix", ["", "transformer."], ids=["without prefix", "with prefix"])
def test_published_weights_are_read_and_counted(prefix: str, tmp_path: Path) -> None:
    state = native_state(GPT2)
    write(tmp_path, GPT2, published(state, prefix))
    assert_same_tensors(load_checkpoint(tmp_path), state)
    analysis = analysed(tmp_path)
    assert by_checkpoint(analysis) == {"parameters": PARAMETERS}
    assert "fit the config by names, shapes and number of parameters." in analysis.notes[-1]


MISFITS: dict[str, tuple[State, str]] = {
    "missing": ({"-h.2.attn.c_attn.weight": torch.empty(0)}, r"1 missing: .*h\.2\.attn\.c_attn\.weight \(64, 192\)$"),
    "misshapen": (
        {"h.1.mlp.c_fc.weight": torch.zeros(112, 64)},
        r"1 misshapen: .*shape \(112, 64\), must be \(64, 112",
    ),
    "surplus": ({"h.3.ln_1.weight": torch.zeros(64)}, r"1 surplus: h\.3\.ln_1\.weight"),
    "twice": (
        {"transformer.ln_f.bias": torch.zeros(64)},
        r"twice: transformer\.ln_f\.bias .* is also ln_f\.bias",
    ),
}


@pytest.mark.parametrize(("change", "said"), MISFITS.values(), ids=MISFITS.keys())
def test_tensors_that_do_not_fit(change: State, said: str, tmp_path: Path) -> None:
    state = published(native_state(GPT2)) | change
    for name in [name for name in change if name.startswith("-")]:
        del state[name], state[name[1:]]
    write(tmp_path, GPT2, state)
    with pytest.raises(CheckpointError, match=said):
        load_checkpoint(tmp_path)


def test_a_checkpoint_without_layers_has_no_other_names(tmp_path: Path) -> None:
    write(tmp_path, GPT2, {"wte.weight": torch.zeros(96, 64)})
    with pytest.raises(CheckpointError, match=r"39 missing: transformer\.wpe\.weight \(4096, 64\), "):
        analysed(tmp_path)


def test_places_of_queries_keys_and_values() -> None:
    own = "model.layers.7.self_attn"
    expected = tuple(Place(f"{own}.{name}_proj.weight", None, None, True, index) for index, name in enumerate("qkv"))
    for name in ("transformer.h.7.attn.c_attn.weight", "h.7.attn.c_attn.weight"):
        assert places_of(name, Config.stored_names) == expected
    stored = torch.arange(12.0).view(2, 6)  # (in, out)
    query, key, _ = expected
    assert query.within(stored).tolist() == [[0.0, 6.0], [1.0, 7.0]]
    assert key.within(stored).tolist() == [[2.0, 8.0], [3.0, 9.0]]
    assert query.shape_in((2, 2)) == (2, 6)


def test_a_stack_may_be_transposed() -> None:
    """(E, out, in) here, (E, in, out) there."""
    (place,) = places_of("a.experts", (StoredName("experts", "mlp.experts.down_proj", transposed=True),))
    assert place.shape_in((3, 4, 5)) == (3, 5, 4)
    assert place.within(torch.zeros(3, 5, 4)).shape == place.of(torch.zeros(3, 4, 5)).shape == (3, 4, 5)


def test_default_sizes_are_those_of_the_smallest_model() -> None:
    spec, published = spec_from_fields({"model_type": "gpt2"}, "x"), read_spec("gpt2")
    assert (spec.layer_runs, spec.learned_positions) == (published.layer_runs, published.learned_positions)
    assert {"vocab_size = 50257", "num_hidden_layers = 12", "n_inner = 4 * n_embd"} <= {*spec.defaulted_fields}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "heads": ({"num_attention_heads": 7}, r"num_attention_heads = 7: hidden_size \(64\) must be divisible by"),
    "activation": ({"activation_function": 1}, "activation_function = 1: must be "),
    "two activations": ({"hidden_act": "silu"}, "hidden_act = 'silu': activation_function is gelu_new"),
    "another MLP": ({"intermediate_size": 64}, "intermediate_size = 64: "),
    "shared keys": ({"num_key_value_heads": 2}, "num_key_value_heads = 2: "),
    "cross attention": ({"add_cross_attention": True}, "add_cross_attention = true: must be false"),
    "rotation": ({"rotary": True}, "rotary = true: the model is built without rotary positions"),
    "no table": ({"use_position_embeddings": False}, "use_position_embeddings = false: the model is built with a lea"),
    "norms": ({"norm_type": "rms_norm"}, "norm_type = 'rms_norm': the model is built without norms by the root mean"),
    "a gate": ({"gated_mlp": True}, "gated_mlp = true: the model is built without a feed-forward with a gate"),
    "another head": ({"architectures": ["GPT2DoubleHeadsModel"]}, "architectures = 'GPT2DoubleHeadsModel': is not a"),
}


@pytest.mark.parametrize(("fields", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=f"^{said}"):
        spec_from_fields(GPT2 | fields, "x")


def test_another_activation_is_counted_through_transformers() -> None:
    """A product and an activation cost the same FLOPs whatever the activation is: as many as the native model has."""
    other = GPT2 | {"activation_function": "relu"}
    with pytest.raises(NotModelledError, match=r"^activation_function = 'relu': has no module here"):
        spec_from_fields(other, "x")
    assert isinstance(model_from_fields(other, "x"), ForeignConfig)
    native, foreign = (analyze(fields, Setup(sequence_length=32)) for fields in (GPT2, other))
    assert (native.proof, foreign.proof) == ("measured = formula", "measured, no formula")
    assert foreign.parameters.total == native.parameters.total
    assert foreign.forward_flops == native.forward_flops


# GPT-2's fields under the names of its published files.
OWN_NAMES = {"n_embd": "hidden_size", "n_head": "num_attention_heads", "n_positions": "max_position_embeddings"}
PUBLISHED_NAMES = {field: value for field, value in GPT2.items() if field not in OWN_NAMES.values()}
PUBLISHED_NAMES |= {own: GPT2[standard] for own, standard in OWN_NAMES.items()}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"n_positions": 0}, "n_positions = 0: must be int >= 1"),
        ({"n_embd": None}, "n_embd = null: must be int, is null"),
        ({"n_head": 7}, r"n_head = 7: n_embd \(64\) must be divisible by n_head \(7\)$"),
    ],
)
def test_errors_have_the_names_of_the_file(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=f"^{said}"):
        spec_from_fields(PUBLISHED_NAMES | fields, "x")


def test_the_length_is_that_of_the_field_in_the_file() -> None:
    assert spec_from_fields(PUBLISHED_NAMES, "x").sequence_length_source == "n_positions"
    assert spec_from_fields(dict(GPT2), "x").sequence_length_source == "max_position_embeddings"
    for fields, field in ((PUBLISHED_NAMES, "n_positions"), (GPT2, "max_position_embeddings")):
        with pytest.raises(ConfigError, match=f"^x: {field} = 4096: a sequence of 5,000 tokens is longer"):
            resolve(Setup(sequence_length=5000), spec_from_fields(dict(fields), "x"))


def test_layers_that_none_rotates_are_no_kind_of_their_own() -> None:
    assert {layer.kind for layer in spec_from_fields(dict(GPT2), "x").layers} == {"dense"}
    by_place = spec_from_fields(GPT2 | {"scale_attn_by_inverse_layer_idx": True}, "x")
    assert [layer.kind for layer in by_place.layers] == [f"dense_scores_over_{place}" for place in (1, 2, 3)]


def test_what_changes_no_count_is_passed_over() -> None:
    """As the published config.json has it; those of the larger models have more."""
    more = {"n_ctx": 1024, "summary_type": "cls_index", "reorder_and_upcast_attn": True, "hidden_act": "gelu_new"}
    more |= {"n_special": 0, "predict_special_tokens": True, "output_past": True}
    more |= {"task_specific_params": {"text-generation": {"do_sample": True}}, "use_bias": True, "attention_bias": True}
    spec = spec_from_fields(GPT2 | more, "x")
    assert spec.layer_runs == spec_from_fields(dict(GPT2), "x").layer_runs
    passed_over = {field.partition(" ")[0] for field in spec.passed_over_fields}
    assert passed_over >= {*more, "resid_pdrop", "embd_pdrop", "attn_pdrop"} - {"hidden_act"}


def test_scores_may_be_scaled_by_the_place_of_a_layer() -> None:
    """1 / (8 channels)^0.5, or 1 / (l + 1) of that in layer l; each layer is then a kind of its own."""
    by_layer = build(GPT2 | {"scale_attn_by_inverse_layer_idx": True}, device="meta").model.layers
    assert [layer.self_attn.scale for layer in by_layer] == pytest.approx([8**-0.5, 8**-0.5 / 2, 8**-0.5 / 3])
    assert [layer.self_attn.scale for layer in build(GPT2, device="meta").model.layers] == [8**-0.5] * 3
    unscaled = build(GPT2 | {"scale_attn_weights": False}, device="meta").model.layers
    assert [layer.self_attn.scale for layer in unscaled] == [1.0] * 3


def test_a_model_refuses_more_positions_than_it_has() -> None:
    model = build(GPT2 | {"max_position_embeddings": 8})
    assert model(torch.zeros(1, 8, dtype=torch.long)).shape == (1, 8, 96)
    with pytest.raises(ArgumentError, match=r"sequence_length = 9: must be at most 8: the table of positions has no"):
        model(torch.zeros(1, 9, dtype=torch.long))
