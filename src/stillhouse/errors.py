"""Every error a user can meet, in one tree; each kind has its own exit code.

    StillhouseError            1   (never raised itself)
    ├── RecipeError            2   a recipe, option or argument that cannot be right
    │   └── OptionError        2   an option of a command that runs a recipe
    ├── DataError              3   text, tokens or a tokenizer that cannot be used
    ├── ModelError             4   a model folder that cannot be used
    ├── RunError               5   a run folder that is damaged, changed or in use
    ├── ResourceError          6   out of disk or memory
    ├── NetworkError           7   the network is needed and not allowed or not there
    ├── TrainingError          8   training that cannot continue (losses that are not finite)
    └── Stopped          130/143   SIGINT or SIGTERM; what was done is committed

A message says what is wrong, where, what was found, and what to do. Any other error that reaches
the command line is a bug of Stillhouse: exit code 1, and the traceback is written to a file.
"""


class StillhouseError(Exception):
    """Base of all errors that Stillhouse raises on purpose."""

    exit_code = 1


class RecipeError(StillhouseError):
    """A recipe, an option or an argument is wrong."""

    exit_code = 2


class OptionError(RecipeError):
    """An option of the command line cannot be right, whatever the recipe says."""


class DataError(StillhouseError):
    """Text, token shards or a tokenizer cannot be used."""

    exit_code = 3


class ModelError(StillhouseError):
    """A model folder is missing, incomplete or of an unknown kind."""

    exit_code = 4


class RunError(StillhouseError):
    """A run folder is damaged, was made by another recipe, or is in use."""

    exit_code = 5


class ResourceError(StillhouseError):
    """The machine has no disk space or memory left."""

    exit_code = 6


class NetworkError(StillhouseError):
    """Something must come from the hub, and the network is not allowed or not reachable."""

    exit_code = 7


class TrainingError(StillhouseError):
    """Training cannot continue, such as after several steps whose loss is not finite."""

    exit_code = 8


class Stopped(StillhouseError):  # noqa: N818 (not a mistake of anyone's)
    """A signal asked to stop; the last completed step is committed and can be resumed."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
