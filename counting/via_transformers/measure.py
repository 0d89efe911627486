"""Measures a model of a family without modules and formulas here: transformers builds it on the meta device.

The model is built, run once with one layer of each kind, and then counted part by part.
"""

from collections.abc import Sequence
from typing import NamedTuple

from msgspec import structs

from counting.counts import LayerCounts, ModelCounts
from counting.measurements.checkpoint import StoredTotals
from counting.measurements.meta_device import measuring
from counting.scans import Scan, products_by_formula
from counting.setup import Setup
from counting.step.notes import FOREIGN_NOTES, FOREIGN_PROOF, FOREIGN_PROOF_BUT_SCANS, SCAN_NOTE, no_step_note
from counting.via_transformers.attention import ONE_KERNEL, attention_in_one_kernel, attention_known_as
from counting.via_transformers.checkpoint import BuiltTensors, compare_with_built, tensors_of_built
from counting.via_transformers.count import count
from counting.via_transformers.discover import Discovered, load_code_of
from counting.via_transformers.quiet import quiet
from counting.via_transformers.reading.config import ForeignModel
from counting.via_transformers.reading.decoders import one_line
from counting.via_transformers.reading.parts import parts_of_model
from counting.via_transformers.run import LONGEST_REASON, Recorded, run_first_way
from counting.via_transformers.settings import check_step_is_measured
from counting.via_transformers.states.layers import scans_of_groups, shapes_of
from counting.via_transformers.states.stand_ins import scans_stood_in
from counting.via_transformers.step.measure import BuiltStep, measure_step
from torch_models.errors import ConfigError, UserError
from torch_models.fields.switches import check_switches

Variants = tuple[tuple[Setup, BuiltStep], ...]  # of a step, with other settings

MOST_KINDS_VARIED = 8  # distinct layers of a model whose step is measured with other settings too
NO_STEP_OF_SCANS = "its layers carry a state along the sequence, and what backward keeps depends on the kernel"


class Measured(NamedTuple):
    """The measured counts, and the code that was measured."""

    witnesses: dict[str, ModelCounts]  # "numel", "trace" and "dispatch"
    built_as: str  # transformers' class and version
    tensors: BuiltTensors  # of the model, for a checkpoint to be compared with
    scans: tuple[tuple[Scan, ...], ...]  # of each distinct layer: those that carry a state along the sequence
    step: BuiltStep | None  # None: not asked for, or it cannot be measured
    no_step: str | None  # why a step cannot be measured
    variants: Variants  # of the step


class Compared(NamedTuple):
    """What was measured of a model that transformers built, and what is said of it."""

    setup: Setup  # with the dtype of the measurement
    witnesses: dict[str, ModelCounts]
    notes: tuple[str, ...]
    stored: StoredTotals | None  # of the checkpoint in `folder`
    scans: tuple[tuple[Scan, ...], ...]
    step: BuiltStep | None
    variants: Variants


def measure_and_compare(
    model: ForeignModel, folder: str | None, setup: Setup, *, step: bool, others: Sequence[Setup] = ()
) -> Compared:
    """Measure the model under a resolved `setup`, and compare it with the checkpoint in `folder`.

    With `step`, a training step is measured too, if that is possible, and beside it one with each of the `others`, if
    that is. Raises `UserError` for a model that cannot be measured, and for a setting of a step where none can be.
    """
    measured = measure_via_transformers(model, setup, step=step, others=others)
    by_formula = any(products_by_formula(scan) for of_layer in measured.scans for scan in of_layer)
    proof = FOREIGN_PROOF_BUT_SCANS if by_formula else FOREIGN_PROOF
    notes = [proof, *FOREIGN_NOTES, *model.notes, f"Built as {measured.built_as}."]
    if measured.no_step is not None:
        check_step_is_measured(setup, model.model_type, measured.no_step)
        notes.append(no_step_note(measured.no_step))
    if any(measured.scans):
        notes.append(SCAN_NOTE)
    whole = model.decoder.whole is not None  # a text part's weights lie in those of the whole
    dtype = setup.precision_recipe.activation_dtype if measured.step else "bfloat16"
    return Compared(
        setup=structs.replace(setup, measured_dtype=dtype),
        witnesses=measured.witnesses,
        notes=tuple(notes),
        stored=compare_with_built(None if whole else folder, measured.tensors),
        scans=measured.scans,
        step=measured.step,
        variants=measured.variants,
    )


def measure_via_transformers(
    model: ForeignModel, setup: Setup, *, step: bool, others: Sequence[Setup] = ()
) -> Measured:
    """Parameters, FLOPs and, if attention runs as one kernel, bytes of the model that transformers builds.

    With `step`, also a training step, and one with each of the `others`, resolved too, unless the model's code does not
    train so on the meta device. `setup` must be resolved. Only one thread measures at a time. Raises `UserError` with
    the op or the module that cannot be counted, or with the reason why the model does not run.
    """
    assert setup.sequence_length is not None, "the sequence length is not resolved"
    version = load_code_of(model.decoder)
    with measuring(), quiet(), attention_known_as(ONE_KERNEL, attention_in_one_kernel):
        try:
            found, recorded = run_first_way(model.decoder, setup.micro_batch)
            check_switches(model.switches, parts_of_model(found, model.config))
            with scans_stood_in(found.model) as noted:
                scans = scans_of_groups(found, recorded, noted)
                witnesses = count(found, recorded, setup, scans)
            measured, no_step = None, None
            if step and any(shapes_of(found, scans)):
                no_step = NO_STEP_OF_SCANS
            elif step:
                measured, no_step = _step(model, found, recorded, witnesses, setup)
            variants = []
            if measured is not None and len(found.groups) <= MOST_KINDS_VARIED:
                of_others = ((other, _step(model, found, recorded, witnesses, other)[0]) for other in others)
                variants = [(other, of_other) for other, of_other in of_others if of_other is not None]
            if measured is not None:
                witnesses = _with_step(witnesses, measured)
        except ConfigError as error:
            raise error.in_file(model.source) from None
        except UserError as error:
            raise UserError(f"{model.source}: model_type {model.model_type} cannot be measured: {error}") from None
    built_as = f"{model.decoder} of transformers {version}"
    shapes = shapes_of(found, scans)
    return Measured(witnesses, built_as, tensors_of_built(found), shapes, measured, no_step, tuple(variants))


def _with_step(witnesses: dict[str, ModelCounts], step: BuiltStep) -> dict[str, ModelCounts]:
    """The witnesses, of which "dispatch" has the step; the states of formats that torch does not run are "recipe"'s."""
    dispatch = structs.replace(witnesses["dispatch"], training_flops=step.flops, step_profile=step.profile)
    if step.by_recipe is None:
        return witnesses | {"dispatch": dispatch}
    layers = tuple(LayerCounts(kind=layer.kind, count=layer.count) for layer in dispatch.layers)
    return witnesses | {"dispatch": dispatch, "recipe": ModelCounts(layers=layers, step_profile=step.by_recipe)}


def _step(
    model: ForeignModel, found: Discovered, recorded: Recorded, witnesses: dict[str, ModelCounts], setup: Setup
) -> tuple[BuiltStep | None, str | None]:
    """The measured step, or the reason why there is none."""
    try:
        measured = measure_step(model.decoder, found, recorded, setup)
        flops = witnesses["dispatch"].whole_model().forward_flops
        assert flops is not None
        one_pass = flops.total * (setup.micro_batches or 1)
        if measured.flops.model % setup.step_tokens or measured.flops.hardware % setup.step_tokens:
            return None, "its products are not made of rows of single tokens"
        if measured.flops.forward.total != one_pass:
            trained = measured.flops.forward.total
            return None, f"in training mode its forward pass has {trained:,} FLOPs, in evaluation mode {one_pass:,}"
        return measured, None
    except UserError as error:
        return None, one_line(error, LONGEST_REASON)
