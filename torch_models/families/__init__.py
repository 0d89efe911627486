"""One module per model family, named as its `model_type`; `Config` defines the fields, `model_spec` makes the spec."""
