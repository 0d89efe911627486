"""PyTorch modules, built from specs."""
