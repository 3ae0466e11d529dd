"""The engine that every training run shares: loop, optimizer, schedule, checkpoints, metrics."""
