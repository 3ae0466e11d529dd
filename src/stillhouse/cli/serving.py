"""Commands that serve models over HTTP."""

from pathlib import Path
from typing import Annotated, Any

import typer

from stillhouse.cli.options import (
    ApiKey,
    Device,
    Engine,
    GivenPrecision,
    Host,
    Insecure,
    Models,
    Offline,
    Port,
)


def serve(
    models: Models,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    precision: GivenPrecision = None,
    engine: Engine = "stillhouse",
    slots: Annotated[int, typer.Option(min=1, help="Sequences generated at once.")] = 16,
    queue: Annotated[int, typer.Option(min=1, help="Requests that may wait for a slot.")] = 64,
    request_timeout: Annotated[
        float, typer.Option(min=1, help="Seconds of work on one request, at most.")
    ] = 120.0,
    api_key: ApiKey = None,
    insecure: Insecure = False,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="A site whose pages may use this server, such as https://example.com; * for all.",
        ),
    ] = None,
    replicas: Annotated[
        int | None, typer.Option(min=1, help="Number of replicas, run by Ray Serve.")
    ] = None,
    max_replicas: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of replicas as the load grows.")
    ] = None,
    offline: Offline = False,
    device: Device = None,
) -> None:
    """Serve models over HTTP, with the APIs of OpenAI, Ollama and Hugging Face.

    A request that names no model is answered by the first one that does its task. Exits on Ctrl+C,
    after accepted requests have finished. With --replicas it runs under Ray Serve, on the cluster
    of RAY_ADDRESS if that is set.
    """
    _serve(
        replicas=(replicas or 1, max_replicas or replicas or 1)
        if replicas or max_replicas
        else None,
        models=tuple(models),
        host=host,
        port=port,
        precision=precision,
        engine=engine,
        api_key=api_key,
        insecure=insecure,
        cors_origins=tuple(cors_origin or ()),
        offline=offline,
        limits={"num_slots": slots, "queue": queue, "request_timeout": request_timeout},
    )


def write(
    models: Models,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    precision: GivenPrecision = None,
    engine: Engine = "stillhouse",
    api_key: ApiKey = None,
    insecure: Insecure = False,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Print the address of the page only.")
    ] = False,
    inspection: Annotated[
        list[Path] | None,
        typer.Option(metavar="FOLDER", help="The neurons of a model, as `inspect` wrote them."),
    ] = None,
    offline: Offline = False,
    device: Device = None,
) -> None:
    """Serve models, and open a page to write with them.

    Two models, such as a student and its teacher, can be compared there. Texts stay in the browser.
    """
    _serve(
        models=tuple(models),
        host=host,
        port=port,
        precision=precision,
        engine=engine,
        api_key=api_key,
        insecure=insecure,
        offline=offline,
        with_editor=True,
        open_browser=not no_browser,
        inspections=tuple(inspection or ()),
    )


def _serve(
    limits: dict[str, Any] | None = None,
    replicas: tuple[int, int] | None = None,
    **settings: Any,
) -> None:
    from stillhouse.extras import require

    require("serve" if replicas is None else "ray")
    from stillhouse.serving.config import Limits, ServerConfig
    from stillhouse.serving.server import serve_models

    config = ServerConfig(limits=Limits(**(limits or {})), **settings)
    if replicas is None:
        serve_models(config)
        return
    from stillhouse.serving.ray_app import serve_replicas

    serve_replicas(config, *replicas)
