"""Every loss: `losses` states them plainly, `fused` computes them without full logits."""
