"""A local server that speaks the chat completions protocol, well-behaved and not, and a job that asks it."""

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from megatron_af.data.rows import Clip, Row, to_json
from megatron_af.prepare.caption_expansion import ExpansionConfig

Answer = Callable[[list[dict[str, Any]], int], tuple[int, str, dict[str, str]]]


def good_entry(item: dict[str, Any]) -> dict[str, Any]:
    caption = item["caption"]
    return {
        "id": item["id"],
        "paraphrases": [f"one hears {caption}", f"there is {caption}"],
        "negatives": [
            {"text": f"backwards {caption}", "change": "order"},
            {"text": f"quiet {caption}", "change": "attribute"},
        ],
    }


def good(items: list[dict[str, Any]], number: int) -> tuple[int, str, dict[str, str]]:
    return 200, json.dumps({"captions": [good_entry(item) for item in items]}), {}


class Server:
    """Answers by a function of the captions asked for and the number of the request."""

    def __init__(self, answer: Answer) -> None:
        self.asked: list[list[str]] = []
        self.items: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.keys: list[str | None] = []
        self.bodies: list[dict[str, Any]] = []
        server, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                items = json.loads(body["messages"][1]["content"])
                with lock:
                    server.times.append(time.monotonic())
                    server.asked.append([item.get("caption", "") for item in items])
                    server.items += items
                    server.keys.append(self.headers.get("Authorization"))
                    server.bodies.append(body)
                    number = len(server.asked)
                assert self.path == "/v1/chat/completions"
                status, content, headers = answer(items, number)
                reply = {"choices": [{"message": {"role": "assistant", "content": content}}]}
                data = json.dumps(reply).encode() if status == 200 else content.encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: Any) -> None: ...

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._http.server_address[1]}/v1"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


def job(folder: Path, server: Server, rows: int = 7) -> ExpansionConfig:
    source = folder / "in.jsonl"
    clip = Clip(path="a.flac", duration=1.0)
    made = [Row(id=f"r{i}", clips=(clip,), captions=(f"sound {i} then bell",), meta={"kept": i}) for i in range(rows)]
    source.write_text("".join(to_json(row) + "\n" for row in made))
    return ExpansionConfig(
        source=str(source),
        output=str(folder / "out.jsonl"),
        endpoint=server.endpoint,
        model="toy",
        paraphrases=2,
        negatives=2,
        rows_per_request=3,
        concurrency=2,
        requests_per_minute=60_000,
        timeout_seconds=5,
    )
