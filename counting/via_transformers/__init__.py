"""Families without modules here, as transformers builds them."""
