"""Memory of a training step: extended equals run whole, and goldens by hand."""

from typing import Any

import msgspec
import pytest
import torch

from counting.measurements.live_bytes import LiveBytes
from counting.measurements.meta_device import measuring
from counting.step.phase import PARTS, Phase
from tests.shrunken import DEEPSEEK_V3, FAMILIES, LLAMA
from tests.witnesses import derived, measured, memory_of, setup_of
from torch_models import build_training_model, set_recompute
from torch_models.fields.config import read_spec, spec_from_fields
from torch_models.spec import ModelRecompute, ModelSpec, Recompute, runs_of

RECOMPUTES: list[Recompute] = ["none", "selective", "per_op", "full"]
OF_MODELS: list[ModelRecompute] = [*RECOMPUTES, 2, 3]  # of every second or third layer


@pytest.mark.parametrize(
    ("precision", "bytes_per_parameter"),
    [("mixed", 16), ("mixed-fp32-gradients", 18), ("bf16", 8), ("fp32", 16)],
)
def test_bytes_per_parameter(precision: str, bytes_per_parameter: int) -> None:
    """By measurement of torch's AdamW: 2 + 2 + 4 + 4 + 4, 2 + 4 + 4 + 4 + 4, 4 x 2, 4 x 4."""
    spec = read_spec("llama_7b_config.json")
    counts = measured(spec, precision=precision)
    assert memory_of(spec, counts, precision=precision).states.total == bytes_per_parameter * 6_738_415_616


def test_fp8_states_by_hand() -> None:
    """Linear layers at 1 byte, the rest at 2; fp32 masters and gradients, two bf16 moments: 12 more for each."""
    spec = read_spec("llama_7b_config.json")
    linear = 32 * (67_108_864 + 135_266_304)
    states = memory_of(spec, measured(spec, precision="fp8"), precision="fp8").states
    assert states.total == 12 * 6_738_415_616 + linear + 2 * (6_738_415_616 - linear)


# --- One layer of each kind stands for all ------------------------------------------------------------------------


def all_layers_distinct(spec: ModelSpec) -> ModelSpec:
    """The same sizes, but no two layers alike: the measurement then runs every one of them."""
    layers = tuple(
        msgspec.structs.replace(layer, norm_eps=layer.norm_eps * (1 + index / 1000))
        for index, layer in enumerate(spec.layers)
    )
    return msgspec.structs.replace(spec, layer_runs=runs_of(layers))


@pytest.mark.parametrize("precision", ["mixed", "mixed-fp32-gradients"])
@pytest.mark.parametrize("recompute", OF_MODELS)
@pytest.mark.parametrize("family", ["llama", "deepseek_v3", "gpt_oss", "gemma2"])
def test_extended_equals_run_whole(family: str, recompute: ModelRecompute, precision: str) -> None:
    spec = spec_from_fields(FAMILIES[family] | {"num_hidden_layers": 6}, "shrunken")
    run: dict[str, Any] = {"recompute": recompute, "precision": precision, "sequence_length": 40}
    whole = all_layers_distinct(spec)
    of_each, of_all = measured(spec, **run), measured(whole, **run)
    assert len(of_all.layers) == 6 > len(of_each.layers)
    assert memory_of(spec, of_each, **run) == memory_of(whole, of_all, **run)


class Uncut(LiveBytes):
    """Notes at each boundary how many storages had been born, and of the peak which boundary came before it."""

    mark = 0
    mark_of_peak = 0

    def watch(self) -> None:
        super().watch()
        self.mark_of_peak = self.mark

    def pass_boundary(self, module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        """Before the module, and on the way back when the gradient of what goes in is there."""
        self.mark = self.born
        args[0].register_hook(lambda gradient: setattr(self, "mark", self.born))


@pytest.mark.parametrize("precision", ["mixed", "mixed-fp32-gradients"])
@pytest.mark.parametrize("recompute", OF_MODELS)
@pytest.mark.parametrize(
    ("family", "layers"), [("llama", 2), ("llama", 6), ("deepseek_v3", 6), ("gpt_oss", 6), ("gemma2", 6)]
)
def test_the_peak_of_a_step_that_is_not_cut(
    family: str, layers: int, recompute: ModelRecompute, precision: str
) -> None:
    """The whole model run once on meta, nothing extended: what is alive at the worst moment, and the states beside."""
    spec = spec_from_fields(FAMILIES[family] | {"num_hidden_layers": layers}, "shrunken")
    if isinstance(recompute, int):
        recompute = min(recompute, layers)
    run: dict[str, Any] = {"recompute": recompute, "precision": precision, "sequence_length": 40}
    extended, recipe = memory_of(spec, derived(spec, **run), **run), setup_of(spec, **run).precision_recipe
    how: Any = {"device": "meta", "dtype": torch.bfloat16}
    model = build_training_model(spec, **how)
    set_recompute(model, recompute)
    parameters = list(model.parameters())
    if recipe.gradients_apart:
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    token_ids, labels = (torch.empty(1, 40, dtype=torch.long, device="meta") for _ in range(2))
    tables = model.model.rotary_tables(token_ids)
    held = [*parameters, *model.buffers(), token_ids, labels]
    held += [table for pair in tables for table in pair]
    with measuring(), Uncut(held) as tracker:
        for module in (*model.model.layers[:layers], model.model.norm):
            module.register_forward_pre_hook(tracker.pass_boundary)
        model(token_ids, labels, tables=tables).backward()
    states = extended.states
    beside = states.masters + states.moments + (states.gradients if recipe.gradients_apart else 0)
    gradients = {tracker.serial(p.grad) for p in parameters if p.grad is not None}
    worst = max(extended.phases[:-1], key=lambda phase: phase.peak_bytes)
    assert worst.peak_bytes == tracker.peak + beside
    at_peak = {serial: size for serial, size in tracker.at_peak.items() if serial not in gradients}
    weights = {tracker.serial(x) for x in (*parameters, *model.buffers())}
    new = {serial: size for serial, size in at_peak.items() if serial >= tracker.mark_of_peak}
    assert worst.activations == sum(size for serial, size in at_peak.items() if serial not in {*weights, *new})
    assert worst.logits_and_loss + worst.transients == sum(new.values())
    if not recipe.gradients_apart:
        assert worst.gradients == sum(tracker.at_peak.get(serial, 0) for serial in gradients)
    update = extended.phases[-1]
    assert update.peak_bytes - update.activations - update.transients == states.total + extended.buffers


@pytest.mark.parametrize("precision", ["mixed", "mixed-fp32-gradients"])
@pytest.mark.parametrize("recompute", RECOMPUTES)
@pytest.mark.parametrize("kernels", ["fused", "eager"])
@pytest.mark.parametrize("config", ["deepseek_v3_config.json", "gemma_2_9b_config.json", "gpt_oss_20b_config.json"])
def test_no_part_is_less_than_nothing(config: str, kernels: Any, recompute: Recompute, precision: str) -> None:
    spec = read_spec(config)
    for length in (1, 4096):
        run = {"sequence_length": length, "recompute": recompute, "kernels": kernels, "precision": precision}
        memory = memory_of(spec, derived(spec, **run), **run)
        for phase in memory.phases:
            assert min(getattr(phase, part) for part in PARTS) >= 0
            assert phase.gradients <= memory.states.gradients


def test_a_phase_is_named_for_what_is_trained() -> None:
    for fields, mtp, name in (
        (DEEPSEEK_V3, None, "head, loss and MTP"),
        (DEEPSEEK_V3, False, "head and loss"),
        (LLAMA, None, "head and loss"),
    ):
        spec = spec_from_fields(fields, "shrunken")
        assert memory_of(spec, derived(spec, mtp=mtp), mtp=mtp).phases[1].name == name


def test_parts_and_layers_of_the_phases() -> None:
    """DeepSeek-V3's kinds in order: the first dense layer is the last to be undone, with almost all gradients there."""
    spec = read_spec("deepseek_v3_config.json")
    run: dict[str, Any] = {"sequence_length": 4096, "recompute": "full"}
    memory = memory_of(spec, derived(spec, **run), **run)
    forward, loss, backward, embedding, update = memory.phases
    assert loss.name == "head, loss and MTP"
    assert (forward.layer, forward.layer_kind, backward.layer, backward.layer_kind) == (60, "moe", 0, "dense")
    assert (loss.layer, embedding.layer, update.layer) == (None, None, None)
    # The worst moment comes when all of multi-token prediction's gradients are there.
    assert loss.gradients == 2 * (11_610_067_968 + 926_679_040)  # and the embedding's waits for its other use
    # Full recomputation keeps each layer's input, and the embedding of multi-token prediction waits for the other.
    stream, inputs = 2 * 4096 * 7168, 2 * 8 * 4096 + 2 * 2 * 4096 * 32
    assert forward.activations == 61 * stream + inputs
    assert backward.activations == 2 * stream + inputs + 4 + 4  # its input, the gradient; the loss, and the loss's own
    peaks = memory.layer_backward_peak_bytes
    assert (len(peaks), max(peaks)) == (61, backward.peak_bytes) == (61, peaks[0])
    # Down the layers each adds its gradients and lets go of its input, and of nothing else.
    moe = 2 * 11_507_286_016
    assert {peaks[layer] - peaks[layer + 1] for layer in range(3, 60)} == {moe - stream}
    whole = 671_026_404_352 + 11_610_067_968
    assert update.gradients == 2 * whole
    assert update.activations == inputs + 4  # and the loss
    assert memory.buffers == 4 * (14_848 + 256) == update.parameters - 2 * whole


def test_apart_gradients_are_there_from_the_start() -> None:
    spec = read_spec("llama_7b_config.json")
    run = {"precision": "mixed-fp32-gradients"}
    memory = memory_of(spec, derived(spec, **run), **run)
    assert {phase.gradients for phase in memory.phases} == {4 * 6_738_415_616}
    assert {phase.optimizer_state for phase in memory.phases} == {12 * 6_738_415_616}


def test_notes_are_of_the_step_at_hand() -> None:
    spec = spec_from_fields(LLAMA, "shrunken")

    def notes(**changes: Any) -> set[str]:
        return set(memory_of(spec, measured(spec, **changes), **changes).notes)

    plain = notes()
    assert {note.split()[0] for note in notes(optimizer="muon") - plain} == {"muon"}
    assert {note.split()[0] for note in notes(precision="fp8") - plain} == {"fp8"}
    assert {note.split()[0] for note in notes(precision="fp32") - plain} == {"CUDA"}
    assert notes(precision="fp32", kernels="eager") == plain


def test_a_step_leaves_its_gradients_and_its_loss() -> None:
    """All activations are gone: what a layer saved forward it lets go backward."""
    profile: Any = measured(spec_from_fields(DEEPSEEK_V3, "shrunken"), micro_batches=2).step_profile
    for passes, left in ((profile.first_micro_batch, 4), (profile.later_micro_batch, 0)):
        stretches = [passes.embedding_forward, passes.loss, passes.embedding_backward]
        for layer, kept in zip(passes.layers, profile.layers, strict=True):
            assert kept.held == layer.forward.net
            gradients = kept.states.gradients if passes is profile.first_micro_batch else 0
            assert layer.forward.net + layer.backward.net == layer.backward.gradients == gradients
            stretches += [layer.forward, layer.backward]
        assert sum(stretch.net - stretch.gradients for stretch in stretches) == left


def test_llama_7b_saves_by_hand() -> None:
    """S = 2048, in units of T D and T F numbers of 2 bytes: what the layers keep, none and full recompute."""
    spec = read_spec("llama_7b_config.json")
    stream, hidden = 2 * 2048 * 4096, 2 * 2048 * 11008
    # two norms' outputs, query, key, value, attention's output, both sums; four hidden states of the MLP
    small = 2 * 4 * 2048 + 4 * 32 * 2048 + 24
    none: Any = measured(spec, sequence_length=2048).step_profile
    assert none.layers[0].held == 8 * stream + 4 * hidden + small
    full: Any = measured(spec, sequence_length=2048, recompute="full").step_profile
    assert full.layers[0].held == stream


def test_phases_and_the_winner() -> None:
    spec = read_spec("llama_7b_config.json")
    result = memory_of(spec, measured(spec, sequence_length=2048), sequence_length=2048)
    assert [phase.name for phase in result.phases] == [
        "forward",
        "head and loss",
        "backward of a layer",
        "backward of the embedding",
        "optimiser step",
    ]
    assert result.peak_bytes == max(phase.peak_bytes for phase in result.phases)
    assert result.peak_phase == "optimiser step"


def test_a_chunked_loss_trades_logits_for_copies_of_the_head_s_gradient() -> None:
    """S = 16,384: all logits at once are T V numbers, three times in fp32; in chunks, thrice D V remain."""
    spec = read_spec("llama_7b_config.json")
    plain: dict[str, Any] = {"precision": "bf16", "optimizer": "sgd", "recompute": "full", "sequence_length": 16384}

    def loss_bytes(loss_chunk: int | None) -> int:
        run: dict[str, Any] = plain | {"loss_chunk": loss_chunk}
        phase = memory_of(spec, measured(spec, **run), **run).phases[1]
        return phase.logits_and_loss + phase.gradients

    assert loss_bytes(None) > 3 * 4 * 16384 * 32000
    gradients = 3 * 2 * 4096 * 32000
    assert gradients < loss_bytes(1024) < gradients + 4 * 2 * 16384 * 4096


def test_the_peak_of_a_phase_is_the_sum_of_its_parts_in_the_document_too() -> None:
    """10 + 20 + 30 + 1 + 2 + 3 + 4 + 5 = 75, also of a copy that has other parts, and whatever is given for it."""
    parts = dict(zip(PARTS, (10, 20, 30, 1, 2, 3, 4, 5), strict=True))
    phase = Phase(name="forward", micro_batch=0, layer=None, layer_kind=None, **parts)
    assert phase.peak_bytes == 75
    assert msgspec.json.decode(msgspec.json.encode(phase))["peak_bytes"] == 75
    assert msgspec.structs.replace(phase, optimizer_state=0).peak_bytes == 45
    assert msgspec.structs.replace(phase, peak_bytes=1) == phase
