"""Operations that torch does not offer under a public name, each with a fake kernel for the meta device."""
