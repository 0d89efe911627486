"""A module for each model family, named as its `model_type`: `Config`, its fields, and `model_spec`, their meaning."""
