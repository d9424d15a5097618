"""Paraphrases and hard negatives of real captions, written by a language model behind an OpenAI-compatible endpoint.

    report = expand(ExpansionConfig(source="clotho.jsonl", output="clotho_expanded.jsonl", endpoint=…, model=…))

AF-CLAP's caption expansion (Ghosh et al. 2025, section 3): M - 1 paraphrases of each caption, and N negatives in which
the order of events or the binding of attributes is altered. Several captions travel in one request and several requests
at a time, no faster than the limit. Every reply is checked; a caption whose reply stays unusable is refused with a
reason and its row left out of the output. Finished rows are kept in ``output.partial``, so a job that was stopped asks
only for the rest.
"""

import http.client
import json
import os
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from megatron_af.data.rows import Manifest, Row, RowError, to_json
from megatron_af.files import write

INSTRUCTIONS = """\
You write training captions for a model that hears. For each caption in the list, write {paraphrases} paraphrases and \
{negatives} negatives.
A paraphrase says exactly the same in other words: the same sounds, in the same order, with the same attributes \
(loudness, pitch, material, number, place). It may name them in another sequence only if it states their order in time.
A negative is as likely a caption as the original, in almost the same words, but wrong. Change one thing:
"order": the events happen in another order. Only where the caption tells an order or events at the same time.
"attribute": an attribute belongs to another sound than in the caption, or becomes its opposite.
Never add or leave out a sound, and never write "not" or "no" to make a negative.
Answer with JSON only, one entry for every id:
{{"captions": [{{"id": 0, "paraphrases": ["…"], "negatives": [{{"text": "…", "change": "order"}}]}}]}}"""
CHANGES = ("order", "attribute")
LONGEST_GROWTH = 3.0
"""A text of more than three times the caption's words (and more than 12 words on top) is chatter, not a caption."""
RETRIED_STATUS = (408, 409, 429, 500, 502, 503, 504)
LONGEST_WAIT_SECONDS = 60.0
KEY_VARIABLE = "OPENAI_API_KEY"


@dataclass(frozen=True, kw_only=True)
class ExpansionConfig:
    source: str
    """JSONL of rows; the first caption of each is expanded."""
    output: str
    """JSONL of the rows with their new captions and negatives."""
    endpoint: str
    """Base address, such as ``http://localhost:8000/v1``; the key, if it needs one, stands in ``OPENAI_API_KEY``."""
    model: str
    paraphrases: int = 3
    """M - 1."""
    negatives: int = 4
    """For the whole row: M x N in the paper's words."""
    captions_per_request: int = 4
    concurrency: int = 8
    requests_per_minute: float = 300.0
    attempts: int = 3
    """Requests for a caption, until a usable reply; also tries of a request that the server turns away."""
    temperature: float = 0.7
    timeout_seconds: float = 120.0


@dataclass(frozen=True, kw_only=True)
class Expanded:
    """What a usable reply says about one caption."""

    paraphrases: tuple[str, ...]
    negatives: tuple[tuple[str, str], ...]
    """Text and kind of change."""


@dataclass(frozen=True, kw_only=True)
class Report:
    rows: int
    expanded: int
    refused: dict[str, str]
    """Row id -> reason."""
    requests: int
    """Sent by this call; none for rows that were done before."""


class EndpointError(RuntimeError):
    """The endpoint cannot be used at all; the message says what to change."""

    exit_code = 1


def expand(config: ExpansionConfig, watch: Callable[[int, int], None] = lambda done, rows: None) -> Report:
    """Expand every row of ``config.source``; the output keeps their order.

    Args:
        watch: told now and then how many rows are done, and of how many.

    Raises:
        EndpointError: the server refuses requests or cannot be reached.
        RowError, FileNotFoundError: of the source; two rows of one id, too.
    """
    rows = list(Manifest(Path(config.source)))
    caption_of: dict[str, str] = {}
    for row in rows:
        if row.id in caption_of:
            raise RowError(f"{config.source}: two rows have the id {row.id!r}; what is done is known by its id")
        caption_of[row.id] = row.captions[0] if row.captions else ""
    partial = Path(f"{config.output}.partial")
    done = _read_partial(partial, config, caption_of)
    writer = _Writer(config, partial, done)
    waiting = [row for row in rows if row.id not in done]
    watch(len(rows) - len(waiting), len(rows))
    chunks = [waiting[i : i + config.captions_per_request] for i in range(0, len(waiting), config.captions_per_request)]
    with ThreadPoolExecutor(config.concurrency) as pool:
        futures = [pool.submit(writer.expand, chunk) for chunk in chunks]
        try:
            for future in as_completed(futures):
                future.result()
                watch(len(done), len(rows))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    refused = {row.id: done[row.id]["refused"] for row in rows if "refused" in done[row.id]}
    kept = [expanded_row(row, _expanded(done[row.id])) for row in rows if row.id not in refused]
    write(Path(config.output), "".join(to_json(row) + "\n" for row in kept))
    lines = [json.dumps({"id": row, "reason": reason}) + "\n" for row, reason in refused.items()]
    write(Path(f"{config.output}.refused"), "".join(lines))
    return Report(rows=len(rows), expanded=len(kept), refused=refused, requests=writer.client.requests)


def _read_partial(path: Path, config: ExpansionConfig, caption_of: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Finished rows by id; those of other numbers, another model or another caption do not count."""
    done: dict[str, dict[str, Any]] = {}
    if path.exists():
        whole = path.read_bytes()
        end = whole.rfind(b"\n") + 1
        os.truncate(path, end)  # a line under way when the job was stopped
        for line in whole[:end].decode().splitlines():
            entry = json.loads(line)
            caption = caption_of.get(entry["id"])
            usable = "refused" in entry or "paraphrases" in entry
            if usable and caption is not None and entry["asked"] == _asked(config, caption):
                done[entry["id"]] = entry
    return done


def _expanded(entry: dict[str, Any]) -> Expanded:
    return Expanded(
        paraphrases=tuple(entry["paraphrases"]), negatives=tuple((text, change) for text, change in entry["negatives"])
    )


def _asked(config: ExpansionConfig, caption: str) -> list[Any]:
    return [config.model, config.paraphrases, config.negatives, caption]


class _Writer:
    """Expands rows from many threads and puts down each as soon as it is done."""

    def __init__(self, config: ExpansionConfig, partial: Path, done: dict[str, dict[str, Any]]) -> None:
        self._config, self._partial, self._done = config, partial, done
        self._lock = threading.Lock()
        self.client = Client(config)

    def expand(self, rows: Sequence[Row]) -> None:
        for row in rows:
            if not row.captions:
                self._put(row, {"refused": "the row has no caption"})
        left = self._asked_once([row for row in rows if row.captions])
        for _ in range(self._config.attempts - 1):
            left = [pair for row, _ in left for pair in self._asked_once([row])]  # alone, it may do better
        for row, problem in left:
            self._put(row, {"refused": problem})

    def _asked_once(self, rows: Sequence[Row]) -> list[tuple[Row, str]]:
        """One request; returns the rows whose answer cannot be used, and why."""
        if not rows:
            return []
        captions = [row.captions[0] for row in rows]
        left = []
        for row, answer in zip(rows, read_reply(self.client.ask(captions), captions, self._config), strict=True):
            if isinstance(answer, Expanded):
                self._put(row, asdict(answer))
            else:
                left.append((row, answer))
        return left

    def _put(self, row: Row, entry: dict[str, Any]) -> None:
        asked = _asked(self._config, row.captions[0] if row.captions else "")
        with self._lock:
            self._done[row.id] = entry
            with self._partial.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"id": row.id, "asked": asked, **entry}) + "\n")


def expanded_row(row: Row, found: Expanded) -> Row:
    """The row with its first caption, the paraphrases, and the negatives with their kinds."""
    return replace(
        row,
        captions=(row.captions[0], *found.paraphrases),
        negatives=tuple(text for text, _ in found.negatives),
        meta={**row.meta, "negative_kinds": [change for _, change in found.negatives]},
    )


def read_reply(reply: str, captions: Sequence[str], config: ExpansionConfig) -> list[Expanded | str]:
    """For each caption what the reply says, or why that cannot be used."""
    fenced = re.fullmatch(r"\s*```(?:json)?\s*(.*?)```\s*", reply, re.DOTALL)
    try:
        entries = json.loads(fenced[1] if fenced else reply)["captions"]
        by_id = {entry["id"]: entry for entry in entries}
    except (json.JSONDecodeError, KeyError, TypeError):
        return [f"the reply is not the JSON that was asked for: {reply[:80]!r}"] * len(captions)
    return [_checked(by_id.get(i), caption, config) for i, caption in enumerate(captions)]


def _checked(entry: Any, caption: str, config: ExpansionConfig) -> Expanded | str:
    if not isinstance(entry, dict):
        return "the reply leaves this caption out"
    paraphrases = entry.get("paraphrases")
    negatives = entry.get("negatives")
    if not isinstance(paraphrases, list) or not isinstance(negatives, list):
        return "paraphrases and negatives must be lists"
    records = [n if isinstance(n, dict) else {} for n in negatives]
    texts = [*paraphrases, *(n.get("text") for n in records)]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        return "a text is empty or missing"
    pairs = [(str(n["text"]).strip(), str(n.get("change"))) for n in records]
    if any(change not in CHANGES for _, change in pairs):
        return f"a negative's change is none of {', '.join(CHANGES)}"
    most = max(LONGEST_GROWTH * len(caption.split()), len(caption.split()) + 12)
    if any(len(text.split()) > most for text in texts):
        return "a text is far longer than the caption"
    told = _distinct([caption, *paraphrases])[1:]
    if len(told) < config.paraphrases:
        return f"{len(told)} different paraphrases instead of {config.paraphrases}"
    meant = {_plain(text) for text in [caption, *told]}
    if any(_plain(text) in meant for text, _ in pairs):
        return "a negative equals the caption or a paraphrase"
    different = _distinct(text for text, _ in pairs)
    wrong = [(text, dict(pairs)[text]) for text in different]
    if len(wrong) < config.negatives:
        return f"{len(wrong)} different negatives instead of {config.negatives}"
    return Expanded(paraphrases=tuple(told[: config.paraphrases]), negatives=tuple(wrong[: config.negatives]))


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def _distinct(texts: Iterable[str]) -> list[str]:
    found: dict[str, str] = {}
    for text in texts:
        found.setdefault(_plain(text), text.strip())
    return list(found.values())


class Client:
    """Chat completions over HTTP: no faster than the limit, and patient with a server that is busy."""

    def __init__(self, config: ExpansionConfig) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._next = 0.0
        self.requests = 0

    def ask(self, captions: Sequence[str]) -> str:
        """The model's reply to the instructions and these captions.

        Raises:
            EndpointError: the server refuses, or stays busy or silent.
        """
        config = self._config
        listed = json.dumps([{"id": i, "caption": caption} for i, caption in enumerate(captions)], ensure_ascii=False)
        rules = INSTRUCTIONS.format(paraphrases=config.paraphrases, negatives=config.negatives)
        body = {
            "model": config.model,
            "temperature": config.temperature,
            "messages": [{"role": "system", "content": rules}, {"role": "user", "content": listed}],
        }
        problem = ""
        for attempt in range(config.attempts):
            self._wait_for_turn()
            try:
                return self._post(body)
            except urllib.error.HTTPError as error:
                text = ""
                with suppress(OSError, http.client.HTTPException):
                    text = error.read().decode(errors="replace")[:200]
                problem = f"HTTP {error.code}: {text}"
                if error.code not in RETRIED_STATUS:
                    raise EndpointError(
                        f"{config.endpoint} refuses requests for model {config.model} ({problem}); check endpoint, "
                        f"model and the environment's {KEY_VARIABLE}"
                    ) from None
                wished = error.headers.get("Retry-After") or ""
                pause = float(wished if wished.replace(".", "", 1).isdigit() else 2**attempt)  # it may be a date
            except (OSError, http.client.HTTPException) as error:  # away, or gone half-way
                problem, pause = str(error), float(2**attempt)
            time.sleep(min(pause, LONGEST_WAIT_SECONDS))
        raise EndpointError(
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
        request = urllib.request.Request(
            self._config.endpoint.rstrip("/") + "/chat/completions",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        if key := os.environ.get(KEY_VARIABLE):
            request.add_header("Authorization", f"Bearer {key}")
        with urllib.request.urlopen(request, timeout=self._config.timeout_seconds) as response:
            reply = response.read()
        try:
            content: str = json.loads(reply)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError):
            raise EndpointError(f"{self._config.endpoint} does not speak the chat completions protocol") from None
        return content or ""
