"""A stage of a rank ready to run its passes, on modules that stand for its own; and what of the settings it needs."""

from collections.abc import Collection
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from counting.measurements.ranks.collectives import axes_of
from counting.measurements.ranks.optimizer import adds_to_buffers, stored_precision
from counting.measurements.ranks.pipeline.plans import Key, PlannedPass, Planner, alike
from counting.measurements.ranks.pipeline.schedules import StageStates
from counting.measurements.ranks.pipeline.stages import PassRun, StageRun
from counting.measurements.ranks.rank import apply_to
from counting.ranks.shallow import shallow
from counting.setup import Setup
from torch_models.builder import build_stage_model
from torch_models.layout import Layout
from torch_models.parallel.mesh import Meshes
from torch_models.parallel.pipeline import ONE_STAGE, messages_of, pipeline_stage
from torch_models.stages import Stage
from torch_models.training.stage import StageModel

if TYPE_CHECKING:
    from counting.measurements.work.recorder import Recorder

OF_MODULES = "meta"
ParameterGroups = list[tuple[list[Tensor], int]]


class PreparedStage(NamedTuple):
    """A stage built of the layers of its shallow model, and the plan of its passes."""

    module: StageModel
    runs: StageRun
    planner: Planner
    sharded: bool
    converts: bool  # whether a `weight_backward` leaves gradients that fully_shard has to convert

    def alike(self, key: Key) -> Key:
        """The pass that is measured for this one."""
        return alike(key, sharded=self.sharded, converts=self.converts)

    def run(self, needed: Collection[Key]) -> list[PassRun]:
        """Run all of `needed`, and the passes that lead to them, in the order of the plan."""
        at_the_end = sorted(key for key in needed if key[0] == "exchange")
        steps = self.planner.plan(set(needed) - set(at_the_end))
        return self.runs.run([*steps, *(PlannedPass(kind, None, found) for kind, found in at_the_end)])


def prepared_stage(
    stage: Stage, setup: Setup, layout: Layout, meshes: Meshes, recorder: "Recorder | None" = None
) -> PreparedStage:
    """Build the stage as the rank that this process is; a `recorder` has the stretches of all passes that are run.

    Call it inside `measuring`. Raises `UserError` for what cannot be divided so.
    """
    model, device = shallow(stage.spec), torch.device(OF_MODULES)
    module = build_stage_model(
        stage._replace(spec=model.spec),
        device=device,
        dtype=_stored(setup, layout),
        kernels=setup.kernels,
        mtp=bool(setup.mtp),
        loss_chunk=setup.loss_chunk,
    )
    apply_to(module, setup, layout, meshes)
    micro_batch = local_micro_batch(setup, layout)
    module.tables = module.model.rotary_tables(torch.zeros(micro_batch, dtype=torch.long, device=device))
    group = meshes.pp.get_group() if meshes.pp is not None else None
    messages = messages_of(stage, layout, micro_batch, module.model.dtype)
    runs = StageRun(
        module,
        pipeline_stage(module, stage, layout, messages, device, group),
        layout,
        axes_of(meshes),
        model.counts(),
        micro_batch,
        let_go=adds_to_buffers(setup, layout),
        recorder=recorder,
    )
    # The first stage's input needs no gradient, so its `weight_backward` is a whole backward pass. With multi-token
    # prediction it runs through the embedding, so that fully_shard acts between the gradients of a layer.
    converts = _converts(setup, layout) and not stage.is_first and not module.num_mtp_layers
    planner = Planner(
        states_of_stage(setup, layout, stage),
        sharded=layout.is_sharded,
        makes_gradients=converts,
        gathers_first=layout.schedule in ONE_STAGE,
    )
    return PreparedStage(module, runs, planner, layout.is_sharded, converts)


def stage_parameters(stage: Stage, module: StageModel) -> ParameterGroups:
    """The parameters outside the layers, then those of each layer with the number of layers that it stands for."""
    counts = shallow(stage.spec).counts()
    in_layers: list[list[Tensor]] = [list(layer.parameters()) for layer in list(module.model.layers)[: len(counts)]]
    known = {id(parameter) for parameters in in_layers for parameter in parameters}
    outside: list[Tensor] = [parameter for parameter in module.parameters() if id(parameter) not in known]
    return [(outside, 1), *zip(in_layers, counts, strict=True)]


def representative(stage: Stage) -> Stage:
    """One stage for all that are measured alike."""
    return stage._replace(number=stage.number if stage.is_first or stage.is_last else 1, first_layer=0)


def shares_embedding(setup: Setup, layout: Layout, stage: Stage) -> bool:
    """Whether the stage adds the gradient of its embedding to that of another stage."""
    ends = stage.is_first or stage.is_last
    return bool(setup.mtp) and stage.predicts_further and ends and not adds_to_buffers(setup, layout)


def states_of_stage(setup: Setup, layout: Layout, stage: Stage) -> StageStates:
    """The stage before its first pass."""
    return StageStates(
        is_first=stage.is_first,
        sharded=layout.is_sharded,
        converts=_converts(setup, layout),
        let_go=adds_to_buffers(setup, layout),
    )


def _converts(setup: Setup, layout: Layout) -> bool:
    """Whether fully_shard reduces gradients in another format than that of the gathered parameters."""
    return layout.is_sharded and computed_dtype(setup) != _stored(setup, layout)


def computed_dtype(setup: Setup) -> torch.dtype:
    """The format of the residual stream."""
    dtype: torch.dtype = getattr(torch, setup.precision_recipe.activation_dtype)
    return dtype


def _stored(setup: Setup, layout: Layout) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, stored_precision(setup, layout).activation_dtype)
    return dtype


def local_micro_batch(setup: Setup, layout: Layout) -> tuple[int, int]:
    """Sequences and this rank's positions of each."""
    return setup.micro_batch.sequences, setup.micro_batch.length // layout.cp
