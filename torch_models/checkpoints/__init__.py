"""Reading and writing of Hugging Face checkpoint folders."""
