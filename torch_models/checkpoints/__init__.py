"""Reading of Hugging Face checkpoint folders."""
