"""Operations that torch has under no public name, each with a fake kernel."""
