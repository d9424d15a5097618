"""The model behind HTTP, as OpenAI's clients ask: chat completions, streamed or whole, with audio in the messages.

    app = make_app(model, settings)         # ASGI; tools/serve.py runs it

    POST /v1/chat/completions      GET /v1/models[/NAME]      GET /health      GET /metrics

A request holds a place from its first byte until it is answered; where none is free it gets 429 before its body is
read, so memory is bounded by places times bytes. Its recordings are opened and its prompt is measured when it comes,
so that what is wrong with it is said to it alone; all are answered together, token by token (``engine.py``). A client
that goes away gives its place back. ``/health`` and ``/metrics`` ask for no key.
"""

import asyncio
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from megatron_af.data.rows import Row
from megatron_af.foreign import ForeignError, strict_json
from megatron_af.inference.requests import BadRequest, RequestRows, TooLarge, files_below, no_files
from megatron_af.inference.writing import Answer, Piece
from megatron_af.serve.chat import Ask, Pieces, Refused, completion, error_body, read_ask, refuse_other
from megatron_af.serve.counts import CONTENT_TYPE, Counts
from megatron_af.serve.engine import Engine, Event, Left
from megatron_af.serve.loaded_model import LoadedModel
from megatron_af.serve.settings import ServingConfig, keys

LOG = logging.getLogger("uvicorn.error")
GONE = 499
"""Status under which a request is counted whose client went away."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request that can be answered."""

    ask: Ask
    row: Row
    prompt_tokens: int


def make_app(model: LoadedModel, settings: ServingConfig) -> Starlette:
    """The application, which closes the model when it ends. Keys of clients come from ``$AF_SERVING_KEYS``."""
    server = Server(model, settings)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(server.close)

    async def unknown(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return server.refuse(Refused(error.status_code, f"{request.method} {request.url.path}: {error.detail}"))

    return Starlette(
        routes=[
            Route("/v1/chat/completions", server.chat, methods=["POST"]),
            Route("/v1/models", server.models),
            Route("/v1/models/{name:path}", server.models),
            Route("/health", server.health),
            Route("/metrics", server.metrics),
        ],
        exception_handlers={HTTPException: unknown},
        lifespan=lifespan,
    )


class Server:
    """One model, its places, and what they were used for."""

    def __init__(self, model: LoadedModel, settings: ServingConfig) -> None:
        self._model, self._settings, self._keys = model, settings, keys()
        self._name = settings.name or model.name
        opens = files_below(Path(settings.audio_folder)) if settings.audio_folder else no_files
        self._files = RequestRows(opens, max_seconds=settings.max_audio_seconds)
        self._places, self._held = settings.batch_requests + settings.waiting_requests, 0
        self._counts = Counts(held=lambda: self._held, waiting=lambda: self._engine.waiting)
        self._engine = Engine(
            model, self._files.root, together=settings.batch_requests, watch=self._counts.batch.observe
        )

    def close(self) -> None:
        """Answers what was begun; everything else gets 503."""
        self._engine.close()
        self._files.close()
        self._model.close()

    async def health(self, request: Request) -> Response:
        """200 where a request can be answered: the weights are loaded, and the thread that answers lives."""
        if self._engine.is_alive:
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "the thread that answers has ended; start the server again"}, 503)

    async def metrics(self, request: Request) -> Response:
        return Response(self._counts.text(), media_type=CONTENT_TYPE)

    async def models(self, request: Request) -> Response:
        try:
            self._admit(request)
            refuse_other(request.path_params.get("name", self._name), self._name)
        except Refused as error:
            return self.refuse(error)
        entry = {"id": self._name, "object": "model", "created": self._counts.started, "owned_by": "megatron-af"}
        return JSONResponse(entry if request.path_params else {"object": "list", "data": [entry]})

    async def chat(self, request: Request) -> Response:
        began, place = time.monotonic(), ExitStack()
        try:
            self._admit(request)
            place.enter_context(self._place())
            ask = read_ask(await self._body(request), model=self._name, settings=self._settings)
            asked = await asyncio.to_thread(self._prepared, ask)
            answering = Answering(self._engine, asked, forget=self._files.forget)
            place.callback(answering.leave)
            first = await self._or_gone(request, answering.next())
            if ask.stream:
                return Stream(self._stream(asked, answering, first, began), place.pop_all())
            answers = dict([first])
            while len(answers) < len(ask.decodings):
                answers |= dict([await self._or_gone(request, answering.next())])
        except Refused as error:
            return self.refuse(error)
        except ClientDisconnect:
            return self.refuse(Refused(GONE, "the client went away"))
        finally:
            place.close()
        said = [answers[choice] for choice in range(len(answers))]
        self._count(asked, said, began)
        return JSONResponse(completion(ask, said, asked.prompt_tokens))

    async def _stream(
        self, asked: Asked, answering: "Answering", first: tuple[int, Any], began: float
    ) -> AsyncIterator[str]:
        """Server-sent events. What goes wrong after the first piece is its last one: the status is sent long since."""
        pieces, (index, event) = Pieces(asked.ask, asked.prompt_tokens), first
        for body in pieces.first():
            yield _sent(body)
        yield _sent(pieces.of(index, event))
        try:
            while not pieces.ended:
                yield _sent(pieces.of(*await answering.next()))
        except Refused as error:
            self._counts.answered(error.status)
            yield _sent(error_body(error))
            return
        for body in pieces.last():
            yield _sent(body)
        yield "data: [DONE]\n\n"
        self._count(asked, list(pieces.answers.values()), began)

    def _count(self, asked: Asked, answers: Sequence[Answer], began: float) -> None:
        self._counts.answered(200)
        self._counts.seconds.observe(time.monotonic() - began)
        self._counts.prompt_tokens.inc(asked.prompt_tokens)
        self._counts.new_tokens.inc(sum(len(answer.tokens) for answer in answers))
        self._counts.audio_seconds.inc(sum(clip.duration for clip in asked.row.clips))

    async def _or_gone(self, request: Request, event: Awaitable[tuple[int, Any]]) -> tuple[int, Any]:
        """Raises `ClientDisconnect` where nobody waits any more."""
        waited = asyncio.ensure_future(event)
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait([waited, gone], return_when=asyncio.FIRST_COMPLETED)
            if not waited.done():
                raise ClientDisconnect
            return await waited
        finally:
            gone.cancel()
            waited.cancel()

    def refuse(self, refused: Refused) -> Response:
        self._counts.answered(refused.status)
        headers = {"Retry-After": "1"} if refused.status == 429 else {}
        return JSONResponse(error_body(refused), refused.status, headers=headers)

    def _admit(self, request: Request) -> None:
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        shown = key.strip().encode() if scheme.lower() == "bearer" else b""
        if self._keys and not any(hmac.compare_digest(shown, known.encode()) for known in self._keys):
            message = "expected `Authorization: Bearer KEY` with a key of this server"
            raise Refused(401, message, code="invalid_api_key")

    @contextmanager
    def _place(self) -> Iterator[None]:
        if self._held >= self._places:
            raise Refused(
                429, f"all {self._places} places of this server are taken; try again in a moment",
                code="rate_limit_exceeded",
            )  # fmt: skip
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1

    async def _body(self, request: Request) -> Any:
        most, seconds = self._settings.max_request_bytes, self._settings.upload_seconds
        content, size = bytearray(), 0
        try:
            async with asyncio.timeout(seconds):
                async for piece in request.stream():
                    size += len(piece)
                    if size <= most:
                        content += piece
                    else:  # read on, and keep nothing: who is cut off while sending never reads why
                        content.clear()
        except TimeoutError:
            raise Refused(408, f"the body: expected within {seconds:g} s, got {size} bytes by then") from None
        if size > most:
            raise Refused(
                413, f"the body: expected at most {most} bytes, got {size}; shorten the recording, or compress it"
            )
        try:
            return strict_json(bytes(content))
        except ForeignError as error:
            raise Refused(400, f"the body: expected JSON: {error}") from None

    def _prepared(self, ask: Ask) -> Asked:
        """Its recordings on disk and its length known; runs beside what is being answered."""
        row: Row | None = None
        try:
            row = self._files.row(ask.request, "messages")
            return Asked(ask=ask, row=row, prompt_tokens=self._model.prompt_tokens(row))
        except BadRequest as error:
            if row is not None:
                self._files.forget(row)
            large = isinstance(error, TooLarge)
            raise Refused(413 if large else 400, str(error), field="messages") from None


class Stream(StreamingResponse):
    """Server-sent events, with what is to be closed when they end, or never begin."""

    def __init__(self, body: AsyncIterator[str], place: ExitStack) -> None:
        super().__init__(body, media_type="text/event-stream")
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._place:
            await super().__call__(scope, receive, send)


class Answering:
    """A request at the engine: its events, as they come.

    Args:
        forget: told when its recordings are not needed any more.
    """

    def __init__(self, engine: Engine, asked: Asked, *, forget: Callable[[Row], None]) -> None:
        self._engine, self._row, self._forget = engine, asked.row, forget
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        # Names of its own, so that nothing of a request lies in a circle: it is large, and freed at once.
        loop, events, stream = asyncio.get_running_loop(), self._events, asked.ask.stream

        def tell(choice: int, event: Event) -> None:
            if isinstance(event, Piece) and not stream:
                return
            with suppress(RuntimeError):  # the server has ended meanwhile
                loop.call_soon_threadsafe(events.put_nowait, (choice, event))

        self._job = engine.submit(asked.row, asked.ask.decodings, tell)

    async def next(self) -> tuple[int, Any]:
        """Which choice says what: a `Piece`, where the answer is streamed, or its `Answer`. Raises `Refused`."""
        choice, event = await self._events.get()
        if not isinstance(event, Exception):
            return choice, event
        if isinstance(event, BadRequest):
            raise Refused(400, str(event), field="messages")
        if isinstance(event, Left):
            raise Refused(503, "the server is ending; ask again")
        LOG.error("a request could not be answered", exc_info=event)
        raise Refused(500, f"the server failed ({type(event).__name__}); its log says more")

    def leave(self) -> None:
        """Nobody waits any more; what was begun ends at its next piece."""
        self._engine.leave(self._job)
        self._forget(self._row)


def _sent(body: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(body)}\n\n"


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
