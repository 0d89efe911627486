"""Model configs in Hugging Face's config.json format and the GPU catalogue: data that is found from any folder."""
