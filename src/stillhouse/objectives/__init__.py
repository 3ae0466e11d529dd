"""Every loss: `losses` states them plainly, `fused` computes them without full logits; `relation`
compares what two models' attention sees."""
