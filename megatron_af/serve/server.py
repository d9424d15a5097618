"""The model behind HTTP, as OpenAI's clients ask: chat completions, streamed or whole, with audio in the messages.

    app = make_app(model, settings)         # ASGI; tools/serve.py runs it

    POST /v1/chat/completions      GET /v1/models      GET /health      GET /metrics

A request holds a place from its first byte until it is answered; where none is free it gets 429 before its body is
read, so memory is bounded by places times bytes. Its recordings are opened and its prompt is measured when it comes,
so that what is wrong with it is said to it alone; what waits is answered together. A client that goes away gives its
place back. ``/health`` and ``/metrics`` ask for no key.
"""

import asyncio
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from megatron_af.data.rows import Row
from megatron_af.inference.requests import BadRequest, RequestRows, TooLarge, files_below, no_files
from megatron_af.serve.batcher import Batcher, Left
from megatron_af.serve.chat import Answer, Ask, Refused, completion, error_body, pieces, read_ask
from megatron_af.serve.counts import CONTENT_TYPE, Counts
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
        self._counts = Counts(held=lambda: self._held, waiting=lambda: self._batcher.waiting)
        self._batcher: Batcher[Asked, Answer] = Batcher(
            self._answer_together, together=settings.batch_requests, watch=self._counts.batch.observe
        )

    def close(self) -> None:
        """Answers what was begun; everything else gets 503."""
        self._batcher.close()
        self._files.close()
        self._model.close()

    async def health(self, request: Request) -> Response:
        """200 where a request can be answered: the weights are loaded, and the thread that answers lives."""
        if self._batcher.is_alive:
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "the thread that answers has ended; start the server again"}, 503)

    async def metrics(self, request: Request) -> Response:
        return Response(self._counts.text(), media_type=CONTENT_TYPE)

    async def models(self, request: Request) -> Response:
        try:
            self._admit(request)
        except Refused as error:
            return self.refuse(error)
        entry = {"id": self._name, "object": "model", "created": self._counts.started, "owned_by": "megatron-af"}
        return JSONResponse({"object": "list", "data": [entry]})

    async def chat(self, request: Request) -> Response:
        began = time.monotonic()
        try:
            self._admit(request)
            with self._place():
                ask = read_ask(await self._body(request), model=self._name, settings=self._settings)
                asked = await asyncio.to_thread(self._prepared, ask)
                answer = await self._answered(request, asked)
        except Refused as error:
            return self.refuse(error)
        except ClientDisconnect:
            return self.refuse(Refused(GONE, "the client went away"))
        self._counts.answered(200)
        self._counts.seconds.observe(time.monotonic() - began)
        self._counts.prompt_tokens.inc(asked.prompt_tokens)
        self._counts.new_tokens.inc(answer.tokens * ask.choices)
        self._counts.audio_seconds.inc(sum(clip.duration for clip in asked.row.clips))
        if not ask.stream:
            return JSONResponse(completion(ask, answer, asked.prompt_tokens))
        bodies = [f"data: {json.dumps(body)}\n\n" for body in pieces(ask, answer, asked.prompt_tokens)]
        return StreamingResponse(iter([*bodies, "data: [DONE]\n\n"]), media_type="text/event-stream")

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
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise Refused(400, f"the body: expected JSON: {str(error)[:80]}") from None

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

    async def _answered(self, request: Request, asked: Asked) -> Answer:
        """Raises `Refused`, and `ClientDisconnect` where nobody waits any more."""
        loop = asyncio.get_running_loop()
        result: asyncio.Future[Answer | Exception] = loop.create_future()

        def pass_on(answer: Answer | Exception) -> None:
            if not result.done():
                result.set_result(answer)

        def tell(answer: Answer | Exception) -> None:
            self._files.forget(asked.row)
            with suppress(RuntimeError):  # the server has ended meanwhile
                loop.call_soon_threadsafe(pass_on, answer)

        job = self._batcher.submit(asked, key=asked.ask.max_new_tokens, tell=tell)
        gone = asyncio.ensure_future(_disconnected(request))
        waited: list[asyncio.Future[Any]] = [result, gone]
        try:
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            self._batcher.leave(job)
        if not result.done():
            raise ClientDisconnect
        answer = result.result()
        if isinstance(answer, Answer):
            return answer
        if isinstance(answer, BadRequest):
            raise Refused(400, str(answer), field="messages")
        if isinstance(answer, Left):
            raise Refused(503, "the server is ending; ask again")
        LOG.error("a request could not be answered", exc_info=answer)
        raise Refused(500, f"the server failed ({type(answer).__name__}); its log says more")

    def _answer_together(self, together: Sequence[Asked]) -> list[Answer]:
        new = together[0].ask.max_new_tokens
        texts = self._model.answer_rows([asked.row for asked in together], self._files.root, max_new_tokens=new)
        counts = [self._model.count_tokens(text) for text in texts]
        return [Answer(text=text, tokens=n, cut=n >= new) for text, n in zip(texts, counts, strict=True)]


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
