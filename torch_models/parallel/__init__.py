"""A `Layout` applied to the modules with torch's own fully sharded, tensor and expert parallelism.

Nothing is imported here: torch's DTensor, which all of it needs, takes half as long to import as torch.
"""
