"""Progress in Kubeflow Trainer's words, posted over TLS to a server as its controller is one."""

import datetime
import json
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from kubeflow_trainer_api import models

from megatron_af.train.callbacks import trainer_status
from megatron_af.train.callbacks.trainer_status import TrainerStatus, status

RECORD = {"step": 2.0, "loss": 1.25, "tokens_per_second": 1200.0, "eta_seconds": 61.4, "mfu": float("nan")}


class Controller:
    """What Trainer's status server was told, and by whom."""

    def __init__(self, folder: Path) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.garbles: list[bool] = []
        """Filled: its answers are not HTTP."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
        now = datetime.datetime.now(datetime.UTC)
        self.certificate = folder / "ca.crt"
        self.certificate.write_bytes(
            x509.CertificateBuilder()
            .subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
            .not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        )  # fmt: skip
        private = folder / "key.pem"
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        told, garbles = self.told, self.garbles

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                told.append((self.headers["Authorization"], body))
                if garbles:
                    self.wfile.write(b"\x15\x03\x01 hello\r\n")
                    return
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, private)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.url = f"https://localhost:{self.server.server_address[1]}/status"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Controller]:
    server = Controller(tmp_path)
    (tmp_path / "token").write_text("first\n")
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_URL", server.url)
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_TOKEN", str(tmp_path / "token"))
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_CA_CERT", str(server.certificate))
    yield server
    server.server.shutdown()


def trainer(rank: int = 0) -> Any:
    return SimpleNamespace(rank=rank, stage=SimpleNamespace(steps=3))


def run(rank: int = 0) -> None:
    callback = TrainerStatus()
    callback.on_start(trainer(rank))
    for step in (1.0, 2.0, 3.0):
        callback.on_step(trainer(rank), RECORD | {"step": step})
    sender = callback._thread
    callback.on_end(trainer(rank), "done")
    assert sender is None or not sender.is_alive(), "the end of the job is not waited for in vain"


def test_status_is_what_trainer_takes() -> None:
    told = status(RECORD, 8)
    model = models.TrainerV1alpha1UpdateTrainJobStatusRequest.from_dict(told)
    assert model is not None
    sent = model.to_dict()["trainerStatus"]
    assert sent.keys() == told["trainerStatus"].keys(), "the model knows every field"
    assert sent["progressPercentage"] == 25 and sent["estimatedRemainingSeconds"] == 61
    assert {metric["name"]: metric["value"] for metric in sent["metrics"]} == {
        "step": "2", "loss": "1.25", "tokens_per_second": "1200",
    }  # fmt: skip
    assert "estimatedRemainingSeconds" not in status({"step": 1.0, "loss": 2.0}, 8)["trainerStatus"]


def test_progress_reaches_the_controller_and_ends_at_the_last_step(controller: Controller) -> None:
    run()
    assert controller.told[-1][0] == "Bearer first"
    assert controller.told[-1][1]["trainerStatus"]["progressPercentage"] == 100
    assert len(controller.told) <= 2, "steps come faster than reports may"


def test_a_renewed_token_is_read_again(controller: Controller, tmp_path: Path) -> None:
    run()
    (tmp_path / "token").write_text("second")
    run()
    assert controller.told[-1][0] == "Bearer second"


def test_only_rank_0_reports(controller: Controller) -> None:
    run(rank=1)
    assert controller.told == []


def test_a_server_that_is_away_is_told_once_and_ends_nothing(
    controller: Controller, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_URL", "https://127.0.0.1:1/status")
    monkeypatch.setattr(trainer_status, "SECONDS", 0.0)
    run()
    assert capsys.readouterr().out.count("takes no progress at https://127.0.0.1:1/status") == 1


def test_one_that_does_not_speak_http_is_told_of_once_and_asked_again(
    controller: Controller, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trainer_status, "SECONDS", 0.0)
    controller.garbles.append(True)
    run()
    assert capsys.readouterr().out.count("takes no progress") == 1
    assert controller.told[-1][1]["trainerStatus"]["progressPercentage"] == 100, "the last report is sent as well"


def test_a_stranger_with_another_certificate_is_not_told(
    controller: Controller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other").mkdir()
    other = Controller(tmp_path / "other")
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_URL", other.url)
    run()
    other.server.shutdown()
    assert other.told == [] and "CERTIFICATE_VERIFY_FAILED" in capsys.readouterr().out
