"""Models in GGUF files, the format of llama.cpp: read once, and written as model folders."""
