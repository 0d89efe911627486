"""What a spec says, in closed form and without torch."""
