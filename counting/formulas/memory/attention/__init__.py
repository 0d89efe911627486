"""The simulation of attention: `block` runs it, `core` its core, a file for the projections of each kind."""
