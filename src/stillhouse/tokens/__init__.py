"""Tokens: tokenizers, token shards, packing, masking, batches and the teacher cache."""
