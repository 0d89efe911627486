"""Measures a model of a family without modules and formulas here: transformers builds it on the meta device.

The model is built, run once with one layer of each kind, and then counted part by part.
"""

from typing import NamedTuple

from counting.counts import ModelCounts
from counting.measurements.meta_device import measuring
from counting.scans import Scan
from counting.setup import Setup
from counting.via_transformers.attention import ONE_KERNEL, attention_in_one_kernel, attention_known_as
from counting.via_transformers.checkpoint import BuiltTensors, tensors_of_built
from counting.via_transformers.count import count
from counting.via_transformers.discover import load_code_of
from counting.via_transformers.quiet import quiet
from counting.via_transformers.reading.config import ForeignModel
from counting.via_transformers.reading.parts import parts_of_model
from counting.via_transformers.run import run_first_way
from counting.via_transformers.states.layers import scans_of_groups, shapes_of
from counting.via_transformers.states.stand_ins import scans_stood_in
from torch_models.errors import ConfigError, UserError
from torch_models.fields.switches import check_switches


class Measured(NamedTuple):
    """The measured counts, and the code that was measured."""

    witnesses: dict[str, ModelCounts]  # "numel", "trace" and "dispatch"
    built_as: str  # transformers' class and version
    tensors: BuiltTensors  # of the model, for a checkpoint to be compared with
    scans: tuple[tuple[Scan, ...], ...]  # of each distinct layer: those that carry a state along the sequence


def measure_via_transformers(model: ForeignModel, setup: Setup) -> Measured:
    """Parameters, FLOPs and, if attention runs as one kernel, bytes of the model that transformers builds.

    `setup` must have a sequence length. Only one thread measures at a time. Raises `UserError` with the op or the
    module that cannot be counted, or with the reason why the model does not run.
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
        except ConfigError as error:
            raise error.in_file(model.source) from None
        except UserError as error:
            raise UserError(f"{model.source}: model_type {model.model_type} cannot be measured: {error}") from None
    return Measured(
        witnesses, f"{model.decoder} of transformers {version}", tensors_of_built(found), shapes_of(found, scans)
    )
