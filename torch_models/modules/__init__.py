"""The modules that specs describe."""
