"""Losses: `divergences` has the formulas, `fused` computes them without full logits, `relation`
compares two models' attention."""
