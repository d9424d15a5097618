"""An MLflow server in a thread: the few REST calls that delivery makes, and every way in which a server can fail."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse


class MlflowServer:
    """State of the server, and ``trouble``: what happens to the next requests.

    ``""`` none; ``refuse``: 403; ``broken``: 500; ``lose_reply``: does what is asked and says nothing; ``slow``.
    """

    def __init__(self, artifacts: Path) -> None:
        self.artifacts = artifacts
        self.trouble = ""
        self.experiments: list[str] = []
        self.runs: dict[str, dict[str, Any]] = {}
        self.requests = 0
        self.port = 0
        self._http: ThreadingHTTPServer | None = None

    def start(self) -> str:
        """Listen, on the same port as before if there was one; the URI."""
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.answer(self, urlparse(self.path).path, body)

            def do_GET(self) -> None:
                parsed = urlparse(self.path)
                server.answer(self, parsed.path, {key: values[0] for key, values in parse_qs(parsed.query).items()})

            def log_message(self, *arguments: object) -> None: ...

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

            def handle_error(self, *arguments: object) -> None: ...

        self._http = Server(("127.0.0.1", self.port), Handler)
        self.port = self._http.server_address[1]
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        assert self._http is not None
        self._http.shutdown()
        self._http.server_close()

    def history(self, run_id: str, key: str) -> list[int]:
        """Steps of a metric in the order they came, each different row once, as MLflow's store keeps them."""
        metrics = [metric for metric in self.runs[run_id]["metrics"] if metric["key"] == key]
        return [step for step, _, _ in dict.fromkeys((m["step"], m["timestamp"], m["value"]) for m in metrics)]

    def answer(self, request: BaseHTTPRequestHandler, path: str, body: dict[str, Any]) -> None:
        self.requests += 1
        call = path.removeprefix("/api/2.0/mlflow/")
        if self.trouble == "refuse":
            return _reply(request, 403, {"error_code": "PERMISSION_DENIED", "message": "not for you"})
        if self.trouble == "broken":
            return _reply(request, 500, {"error_code": "INTERNAL_ERROR", "message": "out of disk"})
        if self.trouble == "slow":
            time.sleep(0.5)
        try:
            result = self._call(call, body)
        except KeyError as error:
            return _reply(request, 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": str(error)})
        except ValueError as error:
            return _reply(request, 400, {"error_code": "INVALID_PARAMETER_VALUE", "message": str(error)})
        if self.trouble == "lose_reply":
            return request.connection.close()
        return _reply(request, 200, result)

    def _call(self, call: str, body: dict[str, Any]) -> dict[str, Any]:
        match call:
            case "experiments/get-by-name":
                name = body["experiment_name"]
                if name not in self.experiments:
                    raise KeyError(name)
                return {"experiment": {"experiment_id": str(self.experiments.index(name)), "name": name}}
            case "experiments/create":
                self.experiments.append(body["name"])
                return {"experiment_id": str(len(self.experiments) - 1)}
            case "runs/search":
                wanted = body["filter"].split("'")[1]
                return {"runs": [_run(r) for r in self.runs.values() if r["tags"].get("spool") == wanted]}
            case "runs/create":
                run_id = f"run{len(self.runs)}"
                tags = {tag["key"]: tag["value"] for tag in body.get("tags", [])}
                info = {
                    "run_id": run_id, "run_uuid": run_id, "experiment_id": body["experiment_id"], "status": "RUNNING",
                    "run_name": body["run_name"], "artifact_uri": (self.artifacts / run_id).as_uri(),
                    "start_time": body.get("start_time", 0), "lifecycle_stage": "active",
                }  # fmt: skip
                self.runs[run_id] = {"info": info, "tags": tags, "params": {}, "metrics": []}
                return {"run": _run(self.runs[run_id])}
            case "runs/get":
                return {"run": _run(self.runs[body["run_id"]])}
            case "runs/update":
                run = self.runs[body["run_id"]]
                run["info"] |= {key: body[key] for key in ("status", "end_time") if key in body}
                return {"run_info": run["info"]}
            case "runs/delete-tag":
                del self.runs[body["run_id"]]["tags"][body["key"]]
                return {}
            case "runs/log-batch":
                run = self.runs[body["run_id"]]
                if any(metric["key"] == "unwelcome" for metric in body.get("metrics", [])):
                    raise ValueError("unwelcome")
                run["metrics"] += body.get("metrics", [])
                run["tags"] |= {tag["key"]: tag["value"] for tag in body.get("tags", [])}
                for param in body.get("params", []):
                    if run["params"].setdefault(param["key"], param["value"]) != param["value"]:
                        raise ValueError(f"{param['key']} cannot change")
                return {}
        raise KeyError(call)


def _run(run: dict[str, Any]) -> dict[str, Any]:
    pairs = {kind: [{"key": key, "value": value} for key, value in run[kind].items()] for kind in ("tags", "params")}
    return {"info": run["info"], "data": {"metrics": [], **pairs}}


def _reply(request: BaseHTTPRequestHandler, code: int, body: dict[str, Any]) -> None:
    text = json.dumps(body).encode()
    request.send_response(code)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(text)))
    request.end_headers()
    request.wfile.write(text)
