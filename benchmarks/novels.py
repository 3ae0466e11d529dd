"""Writes a few shortened novels, for runs of several epochs.

    python -m benchmarks.novels runs/novels.jsonl

By default two novels, and the beginning of a third, whose id puts it into the validation split if
`corpus.validation_fraction` is 0.01; the teachers of `recipes/` were not trained on it.
"""

import argparse
import gzip
import json
from pathlib import Path

from benchmarks.sentences import TEXT

TRAINED = {"Barclay_Ladies_1917": 700_000, "Barclay_Rosary_1909": 600_000}
HELD_OUT = {"Cbronte_Shirley_1849": 250_000}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.novels", description="Writes a few novels, cut short."
    )
    parser.add_argument("output", type=Path, help="the JSON lines file to write")
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--characters", type=int, help="at most, of each novel that is learned")
    options = parser.parse_args()
    limits = {name: min(size, options.characters or size) for name, size in TRAINED.items()}
    limits |= HELD_OUT
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with (
        gzip.open(options.text, "rt", encoding="utf-8") as novels,
        options.output.open("w", encoding="utf-8") as output,
    ):
        for line in novels:
            novel = json.loads(line)
            if (name := novel["id"]) in limits:
                kept = {"id": name, "text": novel["text"][: limits[name]]}
                output.write(json.dumps(kept) + "\n")


if __name__ == "__main__":
    main()
