"""The HTTP side: OpenAI's chat endpoint, the list of models, readiness. It never touches MLX."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from stages.serving import problems
from stages.serving.answers import Answer
from stages.serving.body import BodyLimit
from stages.serving.engine_thread import EngineThread, Ticket
from stages.serving.offer import Offer
from stages.serving.problems import Problem
from stages.serving.wire import ChatRequest

if TYPE_CHECKING:
    from stages.generation.engine import Event, Job


class EventStream(StreamingResponse):
    """A stream that leaves the engine when its client leaves, even before it began."""

    def __init__(self, answer: Answer, leave: Callable[[], None], *, include_usage: bool) -> None:
        super().__init__(
            answer.chunks(include_usage=include_usage),
            media_type="text/event-stream",
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
        )
        self._leave = leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream; however it ends, the engine is told."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._leave()


def create_app(engine: EngineThread, offer: Offer) -> FastAPI:
    """Return the application over a running engine; without pages, which would load from afar."""
    app = FastAPI(title="mlx-lora-pipeline", docs_url=None, redoc_url=None)
    app.add_middleware(BodyLimit)
    problems.install(app)
    encoding = asyncio.Lock()

    @app.get("/health")
    async def health() -> dict[str, str]:
        if not engine.ready:
            raise problems.unavailable()
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(offer, name) for name in offer.adapters]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        offer.check_name(name, None)
        return _model(offer, name)

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        sampling = offer.sampling(body)
        # Long texts take a while: other answers go on meanwhile.
        async with encoding:
            job = await asyncio.to_thread(offer.job, body, sampling)
        answer = Answer(body.model, len(job.prompt))
        ticket = _submit(engine, job, answer)
        if body.stream:
            return EventStream(
                answer, lambda: engine.cancel(ticket), include_usage=body.include_usage
            )
        try:
            return await _whole(answer, request)
        finally:
            engine.cancel(ticket)

    return app


def _submit(engine: EngineThread, job: Job, answer: Answer) -> Ticket:
    loop = asyncio.get_running_loop()

    def deliver(what: Event | Problem) -> None:
        loop.call_soon_threadsafe(answer.events.put_nowait, what)

    ticket = Ticket(job, deliver)
    engine.submit(ticket)
    return ticket


async def _whole(answer: Answer, request: Request) -> Response:
    """Wait for the answer, but no longer than for the client to leave."""
    told = asyncio.create_task(answer.completion())
    left = asyncio.create_task(_disconnected(request.receive))
    try:
        await asyncio.wait({told, left}, return_when=asyncio.FIRST_COMPLETED)
        # Nobody reads what a client that left is told.
        return JSONResponse(told.result()) if told.done() else Response(status_code=499)
    finally:
        told.cancel()
        left.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _model(offer: Offer, name: str) -> dict[str, Any]:
    owner = "mlx-lora-pipeline"
    return {"id": name, "object": "model", "created": offer.created, "owned_by": owner}
