"""Operations that torch does not offer, or not for every dtype and device, and FLOP formulas of what modules run."""
