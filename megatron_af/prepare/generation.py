"""Texts about rows, written by a language model behind an OpenAI-compatible endpoint: what every kind of them shares.

    report = generate(task, config, watch=lambda done, rows: …)       # task: CaptionExpansion, Dialogues

A task says what is asked of a row, what a usable answer is and what becomes of the row. Several rows travel in one
request and several requests at a time, no faster than the limit. Every reply is checked; a row whose reply stays
unusable is refused with a reason and left out of the output. Finished rows are kept in ``output.partial``, so a job
that was stopped asks only for the rest. A row about which the endpoint gives no reply, while it does about others, is
left out and counted as well, and asked about again by the next job.
"""

import http.client
import json
import os
import re
import threading
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from megatron_af.data.rows import BadLine, Manifest, Row, RowError, is_unicode, parse_row, to_json
from megatron_af.files import append, write
from megatron_af.foreign import read_bytes
from megatron_af.retry_after import retry_after

RETRIED_STATUS = (408, 409, 429, 500, 502, 503, 504)
OF_ONE_REQUEST = (400, 413, 422)
"""Statuses of a request that is too long or otherwise not to a server's liking, which may like the next one."""
LONGEST_WAIT_SECONDS = 60.0
LARGEST_REPLY = 16 * 2**20
"""Bytes; of a longer one the rest is not read."""
KEY_VARIABLE = "OPENAI_API_KEY"

type Found = dict[str, Any]
"""What a usable answer about one row says, as it is kept."""


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    source: str
    """JSONL of rows."""
    output: str
    """JSONL of what becomes of them."""
    endpoint: str
    """Base address, such as ``http://localhost:8000/v1``; the key, if it needs one, stands in ``OPENAI_API_KEY``."""
    model: str
    rows_per_request: int = 4
    concurrency: int = 8
    requests_per_minute: float = 300.0
    attempts: int = 3
    """Requests for a row, until a usable reply; also tries of a request that the server turns away."""
    temperature: float = 0.7
    timeout_seconds: float = 120.0


@dataclass(frozen=True, kw_only=True)
class Report:
    rows: int
    written: int
    refused: dict[str, str]
    """Row id -> reason."""
    requests: int
    """Sent by this call; none for rows that were done before."""

    @property
    def lines(self) -> list[str]:
        """For the terminal: a line for each kind of reason."""
        reasons = Counter(map(plain_reason, self.refused.values())).most_common()
        summary = f"{self.written:,} of {self.rows:,} rows written with {self.requests:,} requests"
        return [summary, *(f"  {count:,} refused: {reason}" for reason, count in reasons)]

    @property
    def exit_code(self) -> int:
        """1 where more than a tenth of the rows was refused."""
        return 0 if len(self.refused) <= self.rows / 10 else 1


class EndpointError(RuntimeError):
    """The endpoint cannot be used at all; the message says what to change."""

    exit_code = 1


class Unanswered(EndpointError):
    """A request got no reply; others may."""


class Task(ABC):
    """One kind of text."""

    instructions: str
    """System message."""
    reply_key: ClassVar[str]
    """Of the list of answers in a reply."""
    settings: tuple[Any, ...] = ()
    """What decides an answer besides model and row."""

    @abstractmethod
    def asked(self, row: Row) -> dict[str, Any] | str:
        """What is sent of a row; a text: why nothing can be asked about it."""

    @abstractmethod
    def check(self, entry: dict[str, Any], row: Row) -> Found | str:
        """What an answer says; a text: why it cannot be used."""

    @abstractmethod
    def made(self, row: Row, found: Found) -> Row:
        """The row with it."""


def generate(
    task: Task, config: GenerationConfig, watch: Callable[[int, int], None] = lambda done, rows: None
) -> Report:
    """Ask about every row of ``config.source``; the output keeps their order.

    Args:
        watch: told now and then how many rows are done, and of how many.

    Raises:
        EndpointError: the server refuses requests or cannot be reached.
        FileNotFoundError: of the source.
        RowError: two of its rows have one id.
    """
    rows: dict[str, Row] = {}
    unread: dict[str, str] = {}
    for row in Manifest(Path(config.source)).each():
        if isinstance(row, BadLine):
            unread[f"{config.source}:{row.line}"] = row.why
            continue
        if row.id in rows:
            raise RowError(f"{config.source}: two rows have the id {row.id!r}; what is done is known by its id")
        rows[row.id] = row
    writer = _Writer(task, config, rows)
    waiting = [row for row in rows.values() if row.id not in writer.done]
    watch(len(rows) - len(waiting), len(rows))
    chunks = [waiting[i : i + config.rows_per_request] for i in range(0, len(waiting), config.rows_per_request)]
    with ThreadPoolExecutor(config.concurrency) as pool:
        futures = [pool.submit(writer.ask_about, chunk) for chunk in chunks]
        try:
            for future in as_completed(futures):
                future.result()
                watch(len(writer.done), len(rows))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if writer.lost and not any("found" in entry for entry in writer.done.values()):
        raise Unanswered(next(iter(writer.lost.values())))
    kept = {name: entry["refused"] for name, entry in writer.done.items() if "refused" in entry}
    refused = {name: (kept | writer.lost)[name] for name in rows if name in kept or name in writer.lost}
    made = [task.made(row, writer.done[name]["found"]) for name, row in rows.items() if name not in refused]
    write(Path(config.output), "".join(to_json(row) + "\n" for row in made))
    refused |= unread
    lines = [json.dumps({"id": row, "reason": reason}) + "\n" for row, reason in refused.items()]
    write(Path(f"{config.output}.refused"), "".join(lines))
    return Report(rows=len(rows) + len(unread), written=len(made), refused=refused, requests=writer.client.requests)


class _Writer:
    """Asks about rows from many threads and puts down each as soon as it is done."""

    def __init__(self, task: Task, config: GenerationConfig, rows: dict[str, Row]) -> None:
        self._task, self._config = task, config
        self._partial = Path(f"{config.output}.partial")
        self._lock = threading.Lock()
        self.client = Client(config, task.instructions)
        self.done = self._kept(rows)
        self.lost: dict[str, str] = {}
        """Rows about which there was no reply -> why."""
        self._silent = 0

    def ask_about(self, rows: Sequence[Row]) -> None:
        asked = {row.id: self._task.asked(row) for row in rows}
        for row in rows:
            if isinstance(problem := asked[row.id], str):
                self._put(row, {"refused": problem})
        asking = [row for row in rows if not isinstance(asked[row.id], str)]
        try:
            left = self._asked_once(asking)
        except Unanswered as error:
            self._count_silence(error)
            left = [(row, str(error)) for row in asking]
            if len(asking) == 1 or self._config.attempts == 1:
                self.lost |= {row.id: problem for row, problem in left}
        for _ in range(self._config.attempts - 1):
            left = [pair for row, _ in left for pair in self._asked_alone(row)]  # alone, it may do better
        for row, problem in left:
            if row.id not in self.lost:
                self._put(row, {"refused": problem})

    def _count_silence(self, error: Unanswered) -> None:
        """As many requests in a row as are sent at a time: nobody is there."""
        with self._lock:
            self._silent += 1
            if self._silent >= max(2, self._config.concurrency):
                raise error

    def _asked_alone(self, row: Row) -> list[tuple[Row, str]]:
        if row.id in self.lost:
            return []
        try:
            return self._asked_once([row])
        except Unanswered as error:
            self.lost[row.id] = str(error)
            return []

    def _asked_once(self, rows: Sequence[Row]) -> list[tuple[Row, str]]:
        """One request; returns the rows whose answer cannot be used, and why."""
        if not rows:
            return []
        reply = self.client.ask([item for row in rows if not isinstance(item := self._task.asked(row), str)])
        self._silent = 0
        left = []
        for row, answer in zip(rows, read_reply(self._task, reply, rows), strict=True):
            if isinstance(answer, str):
                left.append((row, answer))
            else:
                self._put(row, {"found": answer})
        return left

    def _put(self, row: Row, entry: dict[str, Any]) -> None:
        with self._lock:
            self.done[row.id] = entry
            append(self._partial, json.dumps({"id": row.id, "asked": self._question(row), **entry}) + "\n")

    def _question(self, row: Row) -> list[Any]:
        return [self._config.model, *self._task.settings, self._task.asked(row)]

    def _kept(self, rows: dict[str, Row]) -> dict[str, dict[str, Any]]:
        """Finished rows by id; what was asked otherwise, or of another model, does not count."""
        done: dict[str, dict[str, Any]] = {}
        if self._partial.exists():
            whole = read_bytes(self._partial)
            end = whole.rfind(b"\n") + 1
            os.truncate(self._partial, end)  # a line under way when the job was stopped
            for line in whole[:end].split(b"\n"):
                with suppress(ValueError, KeyError, TypeError, RecursionError):  # damaged: asked again
                    entry = json.loads(line)
                    row = rows[entry["id"]]
                    if entry["asked"] == self._question(row) and self._is_whole(row, entry):
                        done[row.id] = entry
        return done

    def _is_whole(self, row: Row, entry: dict[str, Any]) -> bool:
        """Whether something can be made of what was put down of a row; raises what its parts raise where not."""
        if "refused" in entry:
            return isinstance(entry["refused"], str)
        return bool(parse_row(json.loads(to_json(self._task.made(row, entry["found"])).encode()), row.id))


def read_reply(task: Task, reply: str, rows: Sequence[Row]) -> list[Found | str]:
    """For each row what the reply says, or why that cannot be used."""
    fenced = re.fullmatch(r"\s*```(?:json)?\s*(.*?)```\s*", reply, re.DOTALL)
    try:
        entries = json.loads(fenced[1] if fenced else reply)[task.reply_key]
        by_id = {entry["id"]: entry for entry in entries}
    except (ValueError, KeyError, TypeError, RecursionError):  # prose, or JSON meant to break its reader
        return [f"the reply is not the JSON that was asked for: {reply[:80]!r}"] * len(rows)
    return [_answer(task, by_id.get(i), row) for i, row in enumerate(rows)]


def _answer(task: Task, entry: Any, row: Row) -> Found | str:
    if not isinstance(entry, dict):
        return "the reply leaves this row out"
    if not is_unicode(entry):
        return "the reply holds half of a surrogate pair"
    return task.check(entry, row)


def plain_reason(problem: str) -> str:
    """A reason without what is the row's own, so that reasons can be counted."""
    kind = re.sub(r"(['\"]).*\1", "…", problem, flags=re.DOTALL)
    return " ".join("…" if any(c.isdigit() for c in word) else word for word in kind.split())


def plain_words(text: str) -> str:
    """A text as it is compared: its words, in small letters."""
    return " ".join(re.findall(r"\w+", text.lower()))


class _StayHere(urllib.request.HTTPRedirectHandler):
    """Nobody who answers for an endpoint sends rows and key somewhere else."""

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> None:
        """Python's own looks at the other address, which may be none."""

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


@cache
def _opener() -> urllib.request.OpenerDirector:
    """One for all requests: making one reads all certificates."""
    return urllib.request.build_opener(_StayHere)


class Client:
    """Chat completions over HTTP: no faster than the limit, and patient with a server that is busy."""

    def __init__(self, config: GenerationConfig, instructions: str) -> None:
        self._config, self._instructions = config, instructions
        self._lock = threading.Lock()
        self._next = 0.0
        self.requests = 0

    def ask(self, items: Sequence[dict[str, Any]]) -> str:
        """The model's reply to the instructions and these items.

        Raises:
            Unanswered: the server stays busy or silent, or does not like this request.
            EndpointError: it refuses any.
        """
        config = self._config
        listed = json.dumps([{"id": i, **item} for i, item in enumerate(items)], ensure_ascii=False)
        body = {
            "model": config.model,
            "temperature": config.temperature,
            "messages": [{"role": "system", "content": self._instructions}, {"role": "user", "content": listed}],
        }
        problem = ""
        for attempt in range(config.attempts):
            self._wait_for_turn()
            try:
                return self._post(body)
            except urllib.error.HTTPError as error:
                text = ""
                with suppress(OSError, http.client.HTTPException):
                    text = _all_of(error).decode(errors="replace")[:200]
                elsewhere = f", it is at {error.headers['Location']}" if error.headers.get("Location") else ""
                problem = f"HTTP {error.code}: {text}{elsewhere}"
                if error.code in OF_ONE_REQUEST:
                    raise Unanswered(f"{config.endpoint} does not take the request ({problem})") from None
                if error.code not in RETRIED_STATUS:
                    raise EndpointError(
                        f"{config.endpoint} refuses requests for model {config.model} ({problem}); check endpoint, "
                        f"model and the environment's {KEY_VARIABLE}"
                    ) from None
                asked = retry_after(error.headers.get("Retry-After"))
                pause = float(2**attempt) if asked is None else asked
            except (OSError, http.client.HTTPException) as error:  # away, or gone half-way
                problem, pause = str(error), float(2**attempt)
            time.sleep(min(pause, LONGEST_WAIT_SECONDS))
        raise Unanswered(
            f"{config.endpoint} did not answer {config.attempts} times ({problem}); what is done is kept: start again "
            "when it is up, or lower concurrency and requests_per_minute"
        )

    def _wait_for_turn(self) -> None:
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + 60.0 / self._config.requests_per_minute
            self.requests += 1
        time.sleep(turn - now)

    def _post(self, body: dict[str, Any]) -> str:
        address = self._config.endpoint.rstrip("/") + "/chat/completions"
        data, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
        try:
            request = urllib.request.Request(address, data=data, headers=headers)
        except ValueError:
            given = self._config.endpoint
            raise EndpointError(
                f"endpoint: expected an address such as http://localhost:8000/v1, got {given!r}"
            ) from None
        if key := os.environ.get(KEY_VARIABLE):
            request.add_header("Authorization", f"Bearer {key}")
        with _opener().open(request, timeout=self._config.timeout_seconds) as response:
            reply = _all_of(response)
        try:
            content = json.loads(reply)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            raise EndpointError(f"{self._config.endpoint} does not speak the chat completions protocol") from None
        return content if isinstance(content, str) else ""


def _all_of(answer: Any) -> bytes:
    """What an answer holds, up to the largest that is read. Raises HTTPException or OSError: it breaks off, or a piece
    of it has fewer than no bytes."""
    try:
        read: bytes = answer.read(LARGEST_REPLY)
    except ValueError as error:  # the library looks at a piece's length by int alone
        raise http.client.HTTPException(str(error)) from None
    return read
