"""Closed forms on the shapes of one rank: its part of each layer, and what that part keeps for backward. Torch-free."""
