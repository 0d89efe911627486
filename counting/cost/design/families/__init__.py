"""The rules of one design family a file, named as its `model_type`.

A file of the name `qwen3` has `QWEN3_DESIGNS`, a `DesignFamily`; nothing else names the family.
"""
