"""Tokens: the tokenizer, the shard format, packing, masking, and the order of batches."""
