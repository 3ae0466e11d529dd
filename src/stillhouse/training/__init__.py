"""The engine that every training run shares: loop, optimizer, schedule, checkpoints, metrics,
and the roofline of its speed."""
