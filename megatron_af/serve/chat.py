"""OpenAI's chat completions, as requests to the model and back.

    ask = read_ask(json.loads(body), model="demo", settings=settings)
    ask.request                     # what inference/requests.py reads
    completion(ask, answers)        # the body of the answer

A conversation is about one recording, in its first user turn, or shows answered examples, each user turn with a
recording of its own. What a system turn says stands before the first user turn: the models know no third speaker.
The fields are those of https://platform.openai.com/docs/api-reference/chat; one that would change the answer and that
this server does not know is refused, not ignored.
"""

import secrets
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from megatron_af.config.errors import suggestion
from megatron_af.inference.decoding import MOST_LOGPROBS, Decoding
from megatron_af.inference.requests import BadRequest, from_base64, read_decoding
from megatron_af.inference.writing import Answer, Piece, TokenScore
from megatron_af.serve.settings import ServingConfig

READ = (
    "model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "repetition_penalty",
    "seed", "stop", "logprobs", "top_logprobs", "n", "stream", "stream_options", "unsure", "least_confidence",
)  # fmt: skip
"""OpenAI's, two that other servers of open models know as well, and two of ours (``Decoding``)."""
WITHOUT_EFFECT = ("user", "metadata", "store", "safety_identifier", "prompt_cache_key", "service_tier")
NEUTRAL: dict[str, Sequence[Any]] = {
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "logit_bias": (None, {}),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "tools": (None, []),
    "tool_choice": (None, "none"),
}
"""What a client may send of fields that this server does not know: their neutral values."""
MOST_STOPS = 4


class Refused(Exception):
    """A request that is not answered: status, one sentence, and the field it is about."""

    def __init__(self, status: int, message: str, *, field: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.field, self.code = status, field, code


def refuse_other(asked: Any, served: str) -> None:
    """Raises `Refused` where another model is asked for than the one that is served."""
    if asked != served:
        told = f"model: expected {served!r}, which is served here, got {_show(asked)}"
        raise Refused(404, told, field="model", code="model_not_found")


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A request that was understood."""

    request: Mapping[str, Any]
    """As ``inference/requests.py`` reads it."""
    model: str
    decodings: tuple[Decoding, ...]
    """Of each choice."""
    stream: bool = False
    usage_at_end: bool = False
    """Whether a stream ends with a piece that counts tokens."""
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))


def read_ask(body: Any, *, model: str, settings: ServingConfig) -> Ask:
    """Raises `Refused`."""
    if not isinstance(body, dict):
        raise Refused(400, f"the body: expected a JSON object, got {_kind(body)}")
    for name, value in body.items():
        if name in NEUTRAL and value not in NEUTRAL[name]:
            raise Refused(400, f"{name}: this server has no such setting; leave it out", field=name)
        if name not in READ and name not in NEUTRAL and name not in WITHOUT_EFFECT:
            raise Refused(400, f"{name}: not a field of this server{suggestion(name, READ)}", field=name)
    refuse_other(body.get("model"), model)
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise Refused(400, f"stream_options: expected an object, got {_kind(options)}", field="stream_options")
    for name in options:
        if name not in ("include_usage", "include_obfuscation"):
            known = suggestion(str(name), ["include_usage"])
            raise Refused(400, f"stream_options.{name}: no option of a stream here{known}", field="stream_options")
    return Ask(
        request=read_messages(body.get("messages"), settings.max_prompt_characters),
        model=model,
        decodings=_decodings(body, settings),
        stream=_flag(body, "stream"),
        usage_at_end=_flag(options, "include_usage"),
    )


def _decodings(body: Mapping[str, Any], settings: ServingConfig) -> tuple[Decoding, ...]:
    """One for each choice; without a seed, drawn answers differ from request to request."""
    most = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    new = _integer(body, most, settings.default_new_tokens, settings.max_new_tokens)
    told = None
    if _flag(body, "logprobs"):
        told = _integer(body, "top_logprobs", 0, MOST_LOGPROBS, least=0)
    elif body.get("top_logprobs"):
        raise Refused(400, "top_logprobs: expected logprobs = true beside it", field="top_logprobs")
    stop = body.get("stop")
    if isinstance(stop, list) and len(stop) > MOST_STOPS:
        raise Refused(400, f"stop: expected at most {MOST_STOPS} texts, got {len(stop)}", field="stop")
    names = ("temperature", "top_p", "top_k", "repetition_penalty", "seed", "stop", "unsure", "least_confidence")
    given = {name: body[name] for name in names if body.get(name) is not None}
    given["seed"] = given.get("seed", secrets.randbits(32))
    try:
        decoding = read_decoding(given | {"max_new_tokens": new, "logprobs": told})
    except BadRequest as error:
        raise Refused(400, str(error), field=str(error).partition(":")[0]) from None
    choices = _integer(body, "n", 1, settings.max_choices)
    return tuple(replace(decoding, seed=(decoding.seed + choice) % 2**63) for choice in range(choices))


def read_messages(messages: Any, max_characters: int) -> dict[str, Any]:
    """The request that a conversation asks for. Raises `Refused`."""
    if not isinstance(messages, list) or not messages:
        raise Refused(400, f"messages: expected a list of turns, got {_kind(messages)}", field="messages")
    turns = [_Turn(message, f"messages[{place}]") for place, message in enumerate(messages)]
    characters = sum(len(turn.text) for turn in turns)
    if characters > max_characters:
        raise Refused(
            400, f"messages: expected at most {max_characters} characters, got {characters}; leave old turns out",
            field="messages", code="context_length_exceeded",
        )  # fmt: skip
    system = [turn for turn in turns if turn.role in ("system", "developer")]
    if system and turns[: len(system)] != system:
        raise Refused(400, "messages: expected system turns before all others", field="messages")
    talk = turns[len(system) :]
    for place, turn in enumerate(talk):
        if turn.role != ("user", "assistant")[place % 2]:
            raise Refused(
                400, f"{turn.where}: expected a turn of the {('user', 'assistant')[place % 2]}, got one of {turn.role}",
                field="messages",
            )  # fmt: skip
    if len(talk) % 2 == 0:
        raise Refused(400, "messages: expected a turn of the user at the end", field="messages")
    said = "\n".join(turn.text for turn in system)
    if said:
        talk[0].text = f"{said}\n{talk[0].text}"
    asked, pairs = talk[-1], list(zip(talk[:-1:2], talk[1::2], strict=True))
    heard = [turn for turn in talk if turn.audio is not None]
    if pairs and len(heard) == len(pairs) + 1:
        shown = [{"audio": user.audio, "prompt": user.text, "answer": reply.text} for user, reply in pairs]
        return {"prompt": asked.text, "audio": asked.audio, "examples": shown}
    if heard and heard != [talk[0]]:
        raise Refused(
            400,
            "messages: expected one recording, in the first turn of the user, or one in each of them (examples); "
            f"got {len(heard)} in {len(pairs) + 1} turns",
            field="messages",
        )
    history = [{"user": user.text, "assistant": reply.text} for user, reply in pairs]
    return {"prompt": asked.text, "audio": talk[0].audio, "history": history or None}


class _Turn:
    """One message, its text in one piece and its recording."""

    def __init__(self, message: Any, where: str) -> None:
        self.where = where
        if not isinstance(message, dict):
            raise Refused(400, f"{where}: expected an object with role and content, got {_kind(message)}")
        role = message.get("role")
        if role not in ("system", "developer", "user", "assistant"):
            raise Refused(400, f"{where}.role: expected system, user or assistant, got {_show(role)}", field="messages")
        self.role = str(role)
        self.audio: str | bytes | None = None
        if role != "assistant":  # whose turns come back as they were sent
            _check_keys(message, ("role", "content", "name"), where)
        content = message.get("content")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list) or not parts:
            raise Refused(400, f"{where}.content: expected text or a list of parts, got {_kind(content)}")
        texts = [text for place, part in enumerate(parts) if (text := self._part(part, f"{where}.content[{place}]"))]
        self.text = "\n".join(texts)

    def _part(self, part: Any, where: str) -> str:
        kind = part.get("type") if isinstance(part, dict) else None
        value = part.get(kind) if isinstance(kind, str) else None
        if kind in ("text", "input_audio", "audio_url"):
            _check_keys(part, ("type", kind, "cache_control"), where)
        if kind == "text":
            if not isinstance(value, str):
                raise Refused(400, f"{where}.text: expected text, got {_kind(value)}", field="messages")
            if any("\ud800" <= letter <= "\udfff" for letter in value):
                raise Refused(400, f"{where}.text: expected Unicode, got half of a surrogate pair", field="messages")
            return value
        if kind not in ("input_audio", "audio_url"):
            known = "text, input_audio or audio_url"
            raise Refused(400, f"{where}.type: expected {known}, got {_show(kind)}", field="messages")
        if self.role != "user":
            raise Refused(400, f"{where}: expected recordings in turns of the user only", field="messages")
        if self.audio is not None:
            raise Refused(400, f"{where}: expected one recording a turn, got another one", field="messages")
        key = "data" if kind == "input_audio" else "url"
        if value is not None and not isinstance(value, dict):
            raise Refused(400, f"{where}.{kind}: expected an object with {key}, got {_kind(value)}", field="messages")
        given = (value or {}).get(key)
        _check_keys(value or {}, (key, "format", "detail"), f"{where}.{kind}")
        if not isinstance(given, str) or not given:
            raise Refused(400, f"{where}.{kind}.{key}: expected text, got {_kind(given)}", field="messages")
        self.audio = _decoded(given, f"{where}.{kind}.{key}") if kind == "input_audio" else _address(given, where)
        return ""


def _check_keys(given: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Refuses what would be dropped in silence, such as a recording beside the content."""
    for name, value in given.items():
        if name not in known and value not in (None, "", [], {}):
            raise Refused(
                400, f"{where}.{name}: not read here, expected {', '.join(known)}; recordings are parts of content",
                field="messages",
            )  # fmt: skip


def _decoded(data: str, where: str) -> bytes:
    try:
        return from_base64(data)
    except ValueError as error:
        raise Refused(400, f"{where}: expected base64, got {data[:40]!r}: {error}", field="messages") from None


def _address(url: str, where: str) -> str | bytes:
    if url[:5].lower() == "data:":
        return _decoded(url, f"{where}.audio_url.url")
    if "://" in url and not url.startswith("file://"):
        raise Refused(
            400, f"{where}.audio_url.url: this server fetches nothing; send a data: URI or input_audio",
            field="messages",
        )  # fmt: skip
    return url


def completion(ask: Ask, answers: Sequence[Answer], prompt_tokens: int) -> dict[str, Any]:
    """The body of an answer in one piece."""
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": _logprobs(ask, answer.scores),
            "finish_reason": answer.finish,
            "confidence": answer.confidence,
        }
        for index, answer in enumerate(answers)
    ]
    return _head(ask, "chat.completion") | {"choices": choices, "usage": _usage(answers, prompt_tokens)}


class Pieces:
    """The bodies of a stream: what begins it, one for each piece, and what ends it."""

    def __init__(self, ask: Ask, prompt_tokens: int) -> None:
        self._ask, self._prompt_tokens = ask, prompt_tokens
        self._head = _head(ask, "chat.completion.chunk") | ({"usage": None} if ask.usage_at_end else {})
        self.answers: dict[int, Answer] = {}

    def first(self) -> Iterator[dict[str, Any]]:
        for index in range(len(self._ask.decodings)):
            yield self._body(index, {"role": "assistant", "content": ""})

    def of(self, index: int, event: Piece | Answer) -> dict[str, Any]:
        if isinstance(event, Piece):
            return self._body(index, {"content": event.text}, scores=event.scores)
        self.answers[index] = event
        body = self._body(index, {}, reason=event.finish)
        body["choices"][0]["confidence"] = event.confidence
        return body

    @property
    def ended(self) -> bool:
        return len(self.answers) == len(self._ask.decodings)

    def last(self) -> Iterator[dict[str, Any]]:
        if self._ask.usage_at_end:
            yield self._head | {"choices": [], "usage": _usage(list(self.answers.values()), self._prompt_tokens)}

    def _body(
        self, index: int, delta: dict[str, Any], *, reason: str | None = None, scores: Sequence[TokenScore] = ()
    ) -> dict[str, Any]:
        logprobs = _logprobs(self._ask, scores) if scores else None
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return self._head | {"choices": [choice]}


def _logprobs(ask: Ask, scores: Sequence[TokenScore]) -> dict[str, Any] | None:
    if ask.decodings[0].logprobs is None:
        return None
    content = [
        _token(score.text, score.logprob) | {"top_logprobs": [_token(text, value) for text, value in score.top]}
        for score in scores
    ]
    return {"content": content, "refusal": None}


def _token(text: str, logprob: float) -> dict[str, Any]:
    # JSON knows no infinity: what can never be written is as good as that.
    return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(text.encode())}


def error_body(refused: Refused) -> dict[str, Any]:
    """OpenAI's form of a refusal."""
    kind = "server_error" if refused.status >= 500 else "invalid_request_error"
    kind = "rate_limit_error" if refused.status == 429 else kind
    # What it quotes of the request may hold half of a surrogate pair, which no answer can.
    message, field = (text and text.encode(errors="replace").decode() for text in (str(refused), refused.field))
    return {"error": {"message": message, "type": kind, "param": field, "code": refused.code}}


def _head(ask: Ask, kind: str) -> dict[str, Any]:
    return {"id": ask.id, "object": kind, "created": ask.created, "model": ask.model}


def _usage(answers: Sequence[Answer], prompt_tokens: int) -> dict[str, int]:
    new = sum(len(answer.tokens) for answer in answers)
    return {"prompt_tokens": prompt_tokens, "completion_tokens": new, "total_tokens": prompt_tokens + new}


def _integer(body: Mapping[str, Any], name: str, default: int, most: int, *, least: int = 1) -> int:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise Refused(400, f"{name}: expected a whole number from {least} to {most}, got {_show(value)}", field=name)
    return value


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise Refused(400, f"{name}: expected true or false, got {_show(value)}", field=name)
    return bool(value)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "nothing" if value in (None, "", [], {}) else names[type(value)]


def _show(value: Any) -> str:
    return repr(value)[:60] if isinstance(value, str | int | float) else _kind(value)
