"""Serves the page of a run until Ctrl-C."""

import webbrowser
from pathlib import Path

from stillhouse.errors import OptionError
from stillhouse.watch.page import Watcher


def serve(folder: Path, port: int, *, open_browser: bool) -> None:
    """Print the page's address, open it, and answer until Ctrl-C.

    Raises:
        OptionError: the port is taken.
    """
    try:
        server = Watcher(folder, port)
    except OSError as error:
        raise OptionError(
            f"--port {port} cannot be used ({error.strerror}). Give another one, or 0 for any."
        ) from error
    with server:
        print(f"{server.address} shows {folder}; Ctrl-C ends it.", flush=True)
        if open_browser:
            webbrowser.open(server.address)
        server.serve_forever()
