"""The passes of one stage of a pipeline in the simulation: whole ones, and backward in halves. Torch-free."""

from counting.formulas.memory.stages.step import (
    SimulatedHalves,
    SimulatedPass,
    SimulatedStage,
    simulate_halves,
    simulate_stage,
)

__all__ = ["SimulatedHalves", "SimulatedPass", "SimulatedStage", "simulate_halves", "simulate_stage"]
