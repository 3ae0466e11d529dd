"""Stillhouse's losses where people already train: a plain PyTorch loop, transformers' `Trainer`."""
