"""The corpus stage: raw text -> documents -> token shards. It writes `corpus/` and `tokens/`."""
