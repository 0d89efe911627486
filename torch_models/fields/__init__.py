"""Reads a config.json into a spec: the file, its fields, and the fields that several families share."""
