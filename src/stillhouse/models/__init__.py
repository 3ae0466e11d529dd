"""Model folders: loading, saving and checking Hugging Face checkpoints."""
