"""The program: runs a command, and turns every error into one message and a stable exit code."""

import os
import sys
import time
import traceback
from pathlib import Path

from stillhouse.errors import ResourceError, StillhouseError


def main() -> None:
    """Run the command line and exit with its code."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    sys.exit(_run())


def _run() -> int:
    import click

    from stillhouse.cli import app

    try:
        code = app(standalone_mode=False)  # what `raise typer.Exit(code)` carried
    except click.ClickException as error:
        error.show()
        return 2
    except (KeyboardInterrupt, click.Abort):
        _complain("Interrupted.")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except StillhouseError as error:
        _complain(str(error))
        return error.exit_code
    except MemoryError:
        _complain(
            "Out of memory. Lower the micro-batch (distillation.micro_batch_tokens) or take a "
            "smaller model."
        )
        return ResourceError.exit_code
    except Exception as error:
        return _our_bug(error)
    return code if isinstance(code, int) else 0


def _complain(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)


def _our_bug(error: Exception) -> int:
    """Keep the traceback of what should not have happened in a file."""
    report = Path(f"crash-{time.strftime('%Y%m%dT%H%M%S')}.txt")
    try:
        report.write_text(
            f"stillhouse {' '.join(sys.argv[1:])}\n\n{traceback.format_exc()}", encoding="utf-8"
        )
    except OSError:
        traceback.print_exc()
    _complain(
        f"This is a bug in Stillhouse, not yours: {type(error).__name__}: {error}\nThe traceback "
        f"is in {report}."
    )
    return 1


if __name__ == "__main__":
    main()
