"""docs/serving.md, as it stands: ten requests through curl, OpenAI's client, MLflow's server, tools/generate.py and an
exported folder."""

import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import fields
from pathlib import Path
from typing import Any

import mlflow
import pytest

from megatron_af.release.commands import SERVING
from megatron_af.runs.bundle import make_release
from megatron_af.runs.digests import recorded_digest
from megatron_af.serve.mlflow_model import SIGNATURE
from megatron_af.serve.settings import ServingConfig
from tests.data.toy import write_tone
from tests.servers import ENVIRONMENT, ROOT, free_port, started
from tests.trained_run import trained_run

DOC = (ROOT / "docs/serving.md").read_text()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ten_requests_have_the_same_answers_five_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("dog", 2.0), ("rain", 12.0)):
        write_tone(tmp_path / f"{name}.wav", seconds, len(name))
    release = make_release(trained_run(tmp_path, "demo"), "stage")
    settings = {"release": release.as_uri(), "digest": recorded_digest(release), "audio_folder": ""}
    mlflow.pyfunc.save_model(
        str(tmp_path / "model"), python_model=str(SERVING), model_config=settings, signature=SIGNATURE,
        pip_requirements=["megatron-af"],
    )  # fmt: skip
    own, theirs = free_port(), free_port()
    doc = DOC.replace(":8000", f":{own}").replace(":5091", f":{theirs}")
    doc = doc.replace('"python", "tools/', f'"{sys.executable}", "{ROOT}/tools/')
    command = [sys.executable, str(ROOT / "tools/export.py"), "runs/demo", "published/demo"]
    subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, check=True, capture_output=True)
    prepare, ask_openai, ask_mlflow, generate, ask_exported = re.findall(r"```python\n(.*?)```", doc, flags=re.DOTALL)
    (ask_curl,) = re.findall(r"```bash\n(.*?)```", doc, flags=re.DOTALL)
    serve = [sys.executable, str(ROOT / "tools/serve.py"), "runs/demo", f"port={own}", f"audio_folder={tmp_path}"]
    mlserve = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "model", "--env-manager", "local"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    scope: dict[str, Any] = {}
    with (
        started(tmp_path, f"http://127.0.0.1:{own}/health", *serve),
        started(
            tmp_path, f"http://127.0.0.1:{theirs}/ping", *mlserve, "--port", str(theirs), "--workers", "1",
            SERVING_MODEL_CONFIG=json.dumps({"audio_folder": str(tmp_path)}),
        ),
    ):  # fmt: skip
        exec(prepare, scope)
        subprocess.run(["bash", "-ec", ask_curl], cwd=tmp_path, env=ENVIRONMENT, check=True)
        exec(ask_openai, scope)
        try:
            exec(ask_mlflow, scope)
            monkeypatch.setenv("PYTHONPATH", str(ROOT))
            exec(generate, scope)
            exec(ask_exported, scope)
        except urllib.error.HTTPError as error:
            pytest.fail(error.read().decode())
    bodies = [json.loads(line) for line in Path("curl.jsonl").read_text().splitlines()]
    by_curl = [body["choices"][0]["message"]["content"] for body in bodies]
    assert len(by_curl) == 10 and len(set(by_curl)) >= 3, "dog, rain and nothing heard"
    assert by_curl == scope["answers"] == scope["predictions"] == scope["generated"] == scope["transformed"]


def test_the_limits_that_are_named_are_settings() -> None:
    table = DOC.partition("\n## Limits")[2].partition("\n## ")[0]
    named = {name for name in re.findall(r"`(\w+)`", table) if "_" in name and name == name.lower()}
    assert named - {"max_text_tokens"} <= {field.name for field in fields(ServingConfig)}
    assert len(named) > 8
