"""What the modules say."""
