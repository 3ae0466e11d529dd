"""What the routes of every dialect need: the models, and the client they answer."""

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Annotated, TypeVar

from fastapi import Depends
from starlette.requests import Request as HttpRequest

from stillhouse.inference.engine.batcher import Request
from stillhouse.serving.catalog import Models
from stillhouse.serving.hosted import Hosted
from stillhouse.serving.metrics import Metrics
from stillhouse.serving.problems import Problem

Result = TypeVar("Result")
LOOK_EVERY = 0.5  # seconds, for a client that has gone


def _models(request: HttpRequest) -> Models:
    models: Models | None = request.app.state.models
    if models is None:
        raise Problem(503, "The model is being loaded; try again in a moment.")
    return models


class Client:
    """The client of a request."""

    def __init__(self, request: HttpRequest) -> None:
        self._request = request
        self._metrics: Metrics = request.app.state.metrics

    def count(self, hosted: Hosted, requests: Sequence[Request]) -> None:
        """Count what is asked for."""
        self._metrics.prompt_tokens.labels(hosted.name).inc(
            sum(len(request.prompt_ids) for request in requests)
        )

    async def unless_gone(self, work: Awaitable[Result]) -> Result:
        """The result of some work, which is dropped when the client goes away.

        Raises:
            Problem: it has (nobody reads that).
        """
        task = asyncio.ensure_future(work)
        try:
            while True:
                done, _ = await asyncio.wait((task,), timeout=LOOK_EVERY)
                if done:
                    return task.result()
                if await self._request.is_disconnected():
                    raise Problem(499, "The client closed the connection.")
        finally:
            task.cancel()


Catalog = Annotated[Models, Depends(_models)]
Served = Annotated[Client, Depends(Client)]
