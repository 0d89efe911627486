"""A training step through transformers: as native ones count it, as all layers run it, as real tensors are."""

from typing import Any

import msgspec
import pytest
import torch
import transformers

from counting.alternatives import other_setups
from counting.analysis import analyze
from counting.cost.conventions import main_attention_core
from counting.counts import Counts, StepFlops
from counting.measurements.live_bytes import LiveBytes
from counting.measurements.meta_device import measuring
from counting.setup import Setup
from counting.via_transformers import measure as whole_measure
from counting.via_transformers.step import measure as step_measure
from counting.via_transformers.step.layers import LayersToRun, LayerToRun
from counting.via_transformers.step.to_run import BuiltToRun
from tests.foreign_families import ERNIE_MOE, FAMILIES, GPT2, without
from tests.shrunken import DEEPSEEK_V3, DEEPSEEK_V32, GEMMA2, LLAMA, MIXTRAL
from torch_models.fields.config import ForeignConfig, spec_from_fields
from torch_models.recomputed_layers import recompute_of_layer

LENGTH = 32

# Settings of a step, each with something that another has not.
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"micro_batches": 3},
    "full": {"recompute": "full", "micro_batches": 2, "precision": "bf16", "optimizer": "sgd"},
    "selective": {"recompute": "selective", "clip_gradients": True, "optimizer": "sgd-momentum"},
    "every second layer": {
        "recompute": 2,
        "micro_batches": 2,
        "precision": "mixed-fp32-gradients",
        "optimizer": "adafactor",
    },
    "in fp32": {"precision": "fp32", "optimizer": "muon", "zero_gradients": "in_place", "micro_batches": 2},
    "in fp8": {"precision": "fp8", "optimizer": "adamw-8bit", "micro_batch_size": 2},
}


def foreign(fields: dict[str, Any], model_type: str | None = None) -> ForeignConfig:
    model_type = model_type or fields["model_type"]
    return ForeignConfig(
        name="small", source="small", model_type=model_type, fields={"model_type": model_type, **fields}
    )


# --- As a native family ------------------------------------------------------------------------------------------

NATIVE = {
    "llama": LLAMA,
    "mixtral": MIXTRAL,
    "gemma2": GEMMA2,
    "deepseek_v3": DEEPSEEK_V3,
    "deepseek_v32": DEEPSEEK_V32,
}


PAIRS = [
    *(("llama", settings) for settings in SETTINGS),
    ("mixtral", "plain"),
    ("mixtral", "in fp32"),
    ("gemma2", "full"),
    ("gemma2", "selective"),
    ("deepseek_v3", "every second layer"),
    ("deepseek_v3", "in fp8"),
    ("deepseek_v32", "plain"),
]


@pytest.mark.parametrize(("family", "settings"), PAIRS)
def test_a_native_family_through_transformers_has_the_native_step(family: str, settings: str) -> None:
    """All FLOPs and model states are equal; activations are not, because norms run op by op."""
    fields, setup = NATIVE[family], Setup(sequence_length=LENGTH, **SETTINGS[settings])
    without_mtp = msgspec.structs.replace(setup, mtp=False)
    native = analyze(spec_from_fields(fields, "small"), without_mtp if "deepseek" in family else setup)
    other = analyze(foreign(fields), setup)
    assert native.training is not None
    assert other.training == native.training
    assert main_attention_core(other) == main_attention_core(native)
    assert other.parameters.by_component == native.parameters.by_component
    assert other.memory is not None
    assert native.memory is not None
    assert other.memory.states == native.memory.states
    update = {phase.name: phase.transients for phase in native.memory.phases[4:]}
    assert update.keys() >= {"optimiser step"}
    assert {phase.name: phase.transients for phase in other.memory.phases[4:]} == update
    assert "no formula" in other.memory.proof
    assert other.memory.peak_bytes > native.memory.peak_bytes - native.memory.phases[0].activations


def test_the_loss_in_chunks_is_the_native_one() -> None:
    setup = Setup(sequence_length=LENGTH, loss_chunk=10)
    native, other = analyze(spec_from_fields(LLAMA, "small"), setup), analyze(foreign(LLAMA), setup)
    assert other.training == native.training
    assert other.training is not None
    assert other.training.recomputed_flops == 2 * LENGTH * 64 * 96  # the head once more


def test_what_llama_keeps_otherwise_by_hand() -> None:
    """One sequence of 32 tokens, 64 wide, 2 bytes a number: 4,096 bytes for each such tensor.

    A layer of ours keeps for each of its two norms 1 / rms in fp32 and what goes in. transformers' norms keep what goes
    in in fp32, 8,192 bytes, 1 / rms, and the normalised numbers in 16 bits beside the result. The input of a layer is
    not kept for itself, nor is that of the second norm.
    """
    settings = {"num_hidden_layers": 8}
    of_layer = {}
    for name, config in (("native", spec_from_fields(LLAMA | settings, "x")), ("other", foreign(LLAMA | settings))):
        small, large = (analyze(_shortened(config, number), Setup(sequence_length=LENGTH)) for number in (4, 8))
        assert small.memory is not None
        assert large.memory is not None
        kept = [memory.phases[1].activations for memory in (small.memory, large.memory)]
        of_layer[name] = (kept[1] - kept[0]) // 4
    assert of_layer["other"] - of_layer["native"] == 2 * (8192 + 4096) - 2 * 4096


def _shortened(config: Any, layers: int) -> Any:
    if isinstance(config, ForeignConfig):
        return msgspec.structs.replace(config, fields=config.fields | {"num_hidden_layers": layers})
    return spec_from_fields(LLAMA | {"num_hidden_layers": layers}, "x")


# --- One layer of each kind stands for all -----------------------------------------------------------------------


def every_layer(found: Any, kinds: list[str], recompute: Any) -> LayersToRun:
    """All layers run, each for itself."""
    names = {group.first: kind for group, kind in zip(found.groups, kinds, strict=True)}
    layers = tuple(
        LayerToRun(layer, names[like], recompute_of_layer(recompute, index), 1)
        for index, (layer, like) in enumerate(zip(found.layers, found.first_alike, strict=True))
    )
    return LayersToRun(layers, tuple((index, 1) for index in range(len(layers))), tuple(range(len(layers))))


GPT_J = GPT2 | {"rotary_dim": 8, "n_layer": 4}  # each layer has a table of angles as a buffer
WHOLE = [
    ("gptj", "plain"),
    ("gpt_bigcode", "plain"),
    ("gpt_bigcode", "every second layer"),
    ("opt", "full"),
    ("falcon", "in fp32"),
    ("cohere2", "plain"),
    ("cohere2", "every second layer"),
    ("olmoe", "selective"),
    ("ernie4_5_moe", "plain"),
    ("ernie4_5_moe", "in fp8"),
    ("stablelm", "plain"),
]


@pytest.mark.parametrize(("model_type", "settings"), WHOLE)
def test_extended_equals_run_whole(model_type: str, settings: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"ernie4_5_moe": ERNIE_MOE, "gptj": GPT_J}
    config = foreign(own.get(model_type, FAMILIES.get(model_type, ({}, {}))[0]), model_type)
    setup = Setup(sequence_length=LENGTH, **SETTINGS[settings])
    extended = analyze(config, setup)
    monkeypatch.setattr(step_measure, "layers_to_run", every_layer)
    whole = analyze(config, setup)
    assert whole.training == extended.training
    assert _without_names(whole) == _without_names(extended)


def _without_names(analysis: Any) -> Any:
    """The memory of a step without the names of parameters, which are those of the layers that ran."""
    return msgspec.structs.replace(analysis.memory, notes=())


def test_rotary_tables_made_by_a_product_count_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The outer product of angles and positions, as families write it or not, is elementwise work."""
    config, setup = foreign(FAMILIES["granite"][0], "granite"), Setup(sequence_length=LENGTH, micro_batches=2)
    by_element = analyze(config, setup)
    multiplied: list[int] = []

    def by_product(self: Any, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles = (self.inv_freq[None, :, None].float() @ position_ids[:, None, :].float()).transpose(1, 2)
        multiplied.append(angles.numel())
        table = torch.cat((angles, angles), dim=-1)
        return table.cos().to(x.dtype), table.sin().to(x.dtype)

    from transformers.models.granite.modeling_granite import GraniteRotaryEmbedding

    monkeypatch.setattr(GraniteRotaryEmbedding, "forward", by_product)
    assert analyze(config, setup).training == by_element.training is not None
    assert LENGTH * 8 in multiplied  # heads of 16 channels have 8 angles


# --- As on real tensors -------------------------------------------------------------------------------------------


# Families whose own code multiplies and masks, so that no kernel is the device's.
ARITHMETIC: dict[str, dict[str, Any]] = {
    "bloom": FAMILIES["bloom"][0],
    "gpt_neo": {
        "vocab_size": 96,
        "hidden_size": 64,
        "num_layers": 4,
        "num_heads": 4,
        "max_position_embeddings": 64,
        "attention_types": [[["global", "local"], 2]],
        "window_size": 8,
        "embed_dropout": 0.0,
        "resid_dropout": 0.0,
        "attention_dropout": 0.0,
    },
}


@pytest.mark.parametrize("model_type", ARITHMETIC)
def test_measured_equals_real(model_type: str) -> None:
    """The peak of both passes of transformers' whole model on the CPU, with numbers, nothing extended.

    In fp32, in which layer norms keep the same on CPU and GPU.
    """
    fields = ARITHMETIC[model_type]
    memory = analyze(foreign(fields, model_type), Setup(sequence_length=LENGTH, precision="fp32")).memory
    assert memory is not None
    config = transformers.AutoConfig.for_model(model_type, **fields)
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()
    inputs = {"input_ids": torch.ones(1, LENGTH, dtype=torch.long)}
    if model_type == "gpt_neo":  # whose code makes no mask on the meta device
        inputs["attention_mask"] = torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool)
    labels = torch.ones(1, LENGTH, dtype=torch.long)

    def loss() -> torch.Tensor:
        logits = model(**inputs, use_cache=False).logits.flatten(0, 1)
        return torch.nn.functional.cross_entropy(logits, labels.flatten(), reduction="sum") / labels.numel()

    with measuring(), LiveBytes([*model.parameters(), *model.buffers(), *inputs.values(), labels]) as tracker:
        loss().backward()
    passes = [phase for phase in memory.phases if phase.name != "optimiser step"]
    assert max(phase.peak_bytes - phase.optimizer_state for phase in passes) == tracker.peak


def test_masks_of_dropout_by_hand() -> None:
    """OPT drops what attention and the feed-forward of a layer return: two masks of 32 x 64 numbers, as large as these.

    That is torch's dropout without a fused kernel; a GPU keeps one byte for each number, as the note of the step says.
    """
    kept = {}
    for rate in (0.0, 0.1):
        for layers in (4, 6):
            fields = FAMILIES["opt"][0] | {"dropout": rate, "attention_dropout": 0.0, "num_hidden_layers": layers}
            analysis = analyze(foreign(fields, "opt"), Setup(sequence_length=LENGTH))
            assert analysis.memory is not None
            kept[rate, layers] = analysis.memory.phases[1].activations
            (said,) = (entry for entry in analysis.passed_over_fields if entry.startswith("dropout = "))
            assert said.endswith("what is measured in training mode has it)")
    assert (kept[0.1, 6] - kept[0.1, 4]) - (kept[0.0, 6] - kept[0.0, 4]) == 2 * 2 * 32 * 64 * 2


def test_no_layer_is_left_out_by_chance() -> None:
    """OPT would leave out each layer in training with this chance: then no two measured steps were equal."""
    dropped = analyze(foreign(FAMILIES["opt"][0] | {"layerdrop": 1.0}, "opt"), Setup(sequence_length=LENGTH))
    kept = analyze(foreign(FAMILIES["opt"][0], "opt"), Setup(sequence_length=LENGTH))
    assert dropped.training == kept.training is not None
    (said,) = (entry for entry in dropped.passed_over_fields if entry.startswith("layerdrop = "))
    assert said.endswith("the analysis trains without dropout)")


# --- What is refused, and what is said ----------------------------------------------------------------------------


def test_what_backward_does_not_reach_is_named() -> None:
    """Keys are chosen by the indexer's scores, through which no gradient passes."""
    fields = without(DEEPSEEK_V3, "architectures", "model_type")
    fields |= {"index_n_heads": 2, "index_head_dim": 16, "index_topk": 8, "bos_token_id": 1, "eos_token_id": 2}
    memory = analyze(foreign(fields, "deepseek_v32"), Setup(sequence_length=LENGTH)).memory
    assert memory is not None
    (note,) = (note for note in memory.notes if "no gradient" in note)
    assert "indexer.wq_b.weight" in note
    width, rank = fields["hidden_size"], fields["q_lora_rank"]
    indexers = 4 * (2 * 16 * rank + 16 * width + 2 * 16 + 2 * width)  # queries, keys, their norm, weights of two heads
    assert memory.states.weights - memory.states.gradients == 2 * indexers


def test_a_parameter_that_is_not_trained_has_no_gradient() -> None:
    """ERNIE-4.5's routers have a bias in fp32 for each of 8 experts that no gradient reaches, in 3 layers."""
    memory = analyze(foreign(ERNIE_MOE, "ernie4_5_moe"), Setup(sequence_length=LENGTH)).memory
    assert memory is not None
    assert memory.states.weights - memory.states.gradients == 4 * 3 * 8
    (note,) = (note for note in memory.notes if "no gradient" in note)
    assert "e_score_correction_bias" in note


REFUSED = {
    "attention that is the code of the family": (
        "falcon",
        {"recompute": "selective"},
        "FalconAttention|its own code: give full",
    ),
    "logits that are scaled": (
        "cohere2",
        {"loss_chunk": 8},
        "loss_chunk = 8: .*the head's products are not its logits",
    ),
    "eager kernels": ("gpt_bigcode", {"kernels": "eager"}, "kernels = 'eager': gpt_bigcode goes through transformers"),
}


@pytest.mark.parametrize(("model_type", "settings", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_by_name(model_type: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        analyze(foreign(FAMILIES[model_type][0], model_type), Setup(sequence_length=LENGTH, **settings))
    assert "\n" not in str(caught.value)


def test_code_that_does_not_train_is_analysed_without_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object) -> None:
        raise RuntimeError("no backward\nhere")

    monkeypatch.setattr(BuiltToRun, "loss", fails)
    analysis = analyze(foreign(GPT2, "gpt2"), Setup(sequence_length=LENGTH))
    assert (analysis.training, analysis.memory) == (None, None)
    assert analysis.notes[-1] == "A training step is not measured: no backward here."
    with pytest.raises(ValueError, match=r"recompute = 'full': no training step of gpt2 .*: no backward here$"):
        analyze(foreign(GPT2, "gpt2"), Setup(sequence_length=LENGTH, recompute="full"))


def test_an_error_of_the_measurement_itself_is_no_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object) -> None:
        raise RuntimeError("of our own")

    monkeypatch.setattr(step_measure, "in_groups", fails)
    with pytest.raises(RuntimeError, match="of our own"):
        analyze(foreign(GPT2, "gpt2"), Setup(sequence_length=LENGTH))


def _with_more_flops(monkeypatch: pytest.MonkeyPatch, more: StepFlops) -> None:
    """Let every measured step have `more` FLOPs."""

    def measured(*args: Any) -> step_measure.BuiltStep:
        step = step_measure.measure_step(*args)
        return step._replace(flops=step.flops + more)

    monkeypatch.setattr(whole_measure, "measure_step", measured)


# FLOPs that a step has beside those of the model -> why there is none.
NO_STEPS = {
    "a product of no rows": (StepFlops(forward=Counts(mlp=1)), "its products are not made of rows of single tokens"),
    "a product of no rows run again": (StepFlops(recomputed=Counts(mlp=1)), "its products are not made of rows of"),
    "more in training mode": (
        StepFlops(forward=Counts(mlp=LENGTH)),
        "in training mode its forward pass has 10,616,864 FLOPs, in evaluation mode 10,616,832",
    ),
}


@pytest.mark.parametrize(("more", "reason"), NO_STEPS.values(), ids=NO_STEPS.keys())
def test_a_step_with_other_products_than_the_model_is_none(
    more: StepFlops, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In evaluation mode GPT-2 has 3 (1,310,720 + 2,097,152) FLOPs in its layers, and 2 x 32 x 64 x 96 in its head."""
    _with_more_flops(monkeypatch, more)
    analysis = analyze(foreign(GPT2, "gpt2"), Setup(sequence_length=LENGTH))
    assert analysis.forward_flops == 3 * (1_310_720 + 2_097_152) + 2 * 32 * 64 * 96
    assert (analysis.training, analysis.memory) == (None, None)
    assert analysis.notes[-1].startswith(f"A training step is not measured: {reason}")


def test_other_settings_are_measured_of_few_kinds_of_layers_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cohere-2 has two kinds here. What runs more again comes later, however the settings are listed."""
    config, setup = foreign(FAMILIES["cohere2"][0], "cohere2"), Setup(sequence_length=LENGTH)

    def recomputed(most: int) -> list[int]:
        monkeypatch.setattr(whole_measure, "MOST_KINDS_VARIED", most)
        memory = analyze(config, setup).memory
        assert memory is not None
        return [other.recomputed_flops for other in memory.alternatives]

    assert recomputed(1) == []
    in_order = recomputed(2)
    assert len(set(in_order)) > 1
    monkeypatch.setattr("counting.analysis.other_setups", lambda setup: other_setups(setup)[::-1])
    assert recomputed(2) == in_order == sorted(in_order)
