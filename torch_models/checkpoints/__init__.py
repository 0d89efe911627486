"""Hugging Face's checkpoint folders."""
