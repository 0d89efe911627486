"""How a config.json becomes a spec: the file, its fields, and what several families read alike."""
