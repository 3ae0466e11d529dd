"""What a request may ask for; checked before anything is read or allocated for it."""

from dataclasses import dataclass

BODY_BYTES = 2**20
SEQUENCES = 8
LIKELIEST = 20
STOPS, STOP_CHARACTERS = 8, 64
PROMPTS = 64  # in one request; of texts to be embedded so many at a time
TEXTS = 2048  # to be embedded in one request, as OpenAI's clients send them


@dataclass(frozen=True)
class Limits:
    """What the server takes on at once.

    Attributes:
        num_slots: Sequences that are generated at once.
        queue: Requests that wait for a slot; more are answered with 429.
        seconds: Of work on a request: a text is as long as it is by then.
    """

    num_slots: int = 16
    queue: int = 64
    seconds: float = 120.0
