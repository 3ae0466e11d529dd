"""The program: runs a command, and turns every error into one message and a stable exit code."""

import gc
import os
import sys
import time
import traceback
from pathlib import Path

from stillhouse.allocator import keep_freed_memory
from stillhouse.errors import ResourceError, StillhouseError, Stopped


def main() -> None:
    """Run the command line and exit with its code."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # one message for a lost rank, not fifty
    # torch and transformers create 365,000 permanent objects. Collecting garbage after every few
    # hundred takes a fifth of their import time.
    gc.set_threshold(50_000)
    keep_freed_memory()
    try:
        sys.exit(_run())
    except KeyboardInterrupt:  # outside of a training, which commits first
        _say("Interrupted.")
        sys.exit(130)


def _run() -> int:
    from stillhouse.cli import app

    try:
        try:
            app()  # exits with 0, 2 for a usage error, 130 for Ctrl-C
        except OSError:
            from stillhouse.runs.atomic import explained_os_errors

            with explained_os_errors():
                raise
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except Stopped as stopped:
        _say(str(stopped))
        return stopped.exit_code
    except StillhouseError as error:
        _complain(str(error))
        return error.exit_code
    except MemoryError:
        _complain(
            "Out of memory. Lower the micro-batch (distillation.micro_batch_tokens) or use a "
            "smaller model."
        )
        return ResourceError.exit_code
    except Exception as error:
        return _our_bug(error)
    return 0


def _complain(message: str) -> None:
    _say(f"error: {message}")


def _say(message: str) -> None:
    rank = os.environ.get("RANK", "0")
    who = "" if rank == "0" else f"rank {rank}: "
    text = f"{who}{message}".encode("utf-8", "backslashreplace").decode()
    print(text, file=sys.stderr)


def _our_bug(error: Exception) -> int:
    """Write the traceback of an unexpected error to a file."""
    report = Path(f"crash-{time.strftime('%Y%m%dT%H%M%S')}.txt")
    try:
        report.write_text(
            f"stillhouse {' '.join(sys.argv[1:])}\n\n{traceback.format_exc()}",
            encoding="utf-8",
            errors="backslashreplace",
        )
        place = f"is in {report}"
    except OSError:
        traceback.print_exc()
        place = "is above"
    _complain(
        f"This is a bug in Stillhouse, not yours: {type(error).__name__}: {error}\nThe traceback "
        f"{place}."
    )
    return 1


if __name__ == "__main__":
    main()
