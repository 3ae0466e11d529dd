"""The corpus stage: documents -> token shards. Writes `corpus/` and `tokens/`."""
