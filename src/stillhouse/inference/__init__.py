"""Running a model folder: text generation, embeddings and task predictions."""
