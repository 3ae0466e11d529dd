"""Benchmarks: Stillhouse's training step compared with a plain implementation of the 2019 step, its
preprocessing with the `tokenizers` library, its inference with transformers."""
