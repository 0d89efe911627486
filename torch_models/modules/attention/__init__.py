"""Attention, causal, over whole sequences, as in training: the core that all kinds share, and a file for each kind."""
