"""Addresses with a password are refused wherever they stand, by a sentence without it; all others pass."""

from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_af.config import Config, ConfigError
from megatron_af.config.addresses import VARIABLES, from_environment, hidden, holds_secret, refuse_secrets
from megatron_af.config.loading import load_config, read_config, read_values
from megatron_af.prepare.caption_expansion import ExpansionConfig

SECRET = (
    "http://user:canary@127.0.0.1:9",
    "http://user:@host",
    "https://:canary@host/v1",
    "postgresql+psycopg2://user:canary@host/db",
    "postgresql://user@host/db?password=canary",
    "s3://key:canary@bucket/x",
    "simplecache::s3://key:canary@bucket/x",
    "http:/user:canary@host",
    "http://user:can/ary@host",
    "http://user:can#ary@host",
    "http://user:can@ary@host",
    "http://user:canary of mine@host",
    "see http://user:canary@host there",
    "http://host/v1?key=canary",
    "http://host/v1?api-version=2&api_key=canary",
    "http://host/v1?access_token=canary",
    "http://host/v1#token=canary",
    "http://host/v1?accessToken=canary",
    "http://host/v1?client_secret=canary",
    "http://host/v1?k%65y=canary",
    "https://bucket/x?X-Amz-Signature=canary&X-Amz-Expires=3",
    "https://bucket/x?X-Amz-Credential=canary",
    "https://account.blob/x?sv=2&sig=canary",
    "https://account.blob/x?AccountKey=canary",
)
PLAIN = (
    "",
    "runs/demo",
    "sqlite:///runs/mlflow/mlflow.db",
    "sqlite:////data/a:b@c/mlflow.db",
    "postgresql://user@host/db",
    "postgresql://user@host:5432/db?sslmode=require&sslkey=/etc/client.key",
    "s3://bucket/x",
    "s3://bucket/a:b/c@d",
    "http://host:5000",
    "http://host:5000/@user",
    "http://[::1]:5000/v1",
    "http://user@host",
    "http://user@host:5000/a",
    "https://host/openai/deployments/x?api-version=2024-06-01",
    "http://host/v1?key=",
    "http://host/v1?max_tokens=3&design=x&monkey=y",
    "models:/demo@champion",
    "file:///data/a@b",
    "user:canary@host",
    "What is it: a/b? key=c",
)


@pytest.mark.parametrize("text", SECRET)
def test_a_password_is_seen_and_hidden(text: str) -> None:
    assert holds_secret(text)
    assert not any(part in hidden(f"expected a number, got '{text}'") for part in ("canary", "ary@", "mine"))


@pytest.mark.parametrize("text", PLAIN)
def test_an_address_without_one_passes(text: str) -> None:
    assert not holds_secret(text)


@pytest.mark.parametrize("text", [text for text in PLAIN if "@" not in text])
def test_what_holds_none_is_told_as_it_is(text: str) -> None:
    assert hidden(f"got {text}") == f"got {text}"


def top(folder: Path, text: str = "name: x") -> Path:
    (folder / "top.yaml").write_text(text)
    return folder / "top.yaml"


def refused(read: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as caught:
        read()
    assert "canary" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("address", SECRET)
def test_no_key_takes_one(tmp_path: Path, address: str) -> None:
    for override in (f"tracking.uri={address}", f"data.root={address}", f"evaluation.judge.endpoint={address}"):
        key = override.partition("=")[0]
        assert f"{key} (command line): holds a password" in refused(lambda o=override: load_config(top(tmp_path), [o]))
        assert key in refused(lambda o=override: read_config(top(tmp_path), [o]))


def test_a_file_holds_none_whatever_its_schema(tmp_path: Path) -> None:
    file = top(tmp_path, f"{{source: a, output: b, model: m, endpoint: '{SECRET[0]}'}}")
    assert "endpoint: holds a password" in refused(lambda: read_values(ExpansionConfig, file))
    listed = top(tmp_path, f"{{name: x, curriculum: {{a: {{evaluation: [b, '{SECRET[0]}']}}}}}}")
    assert "curriculum.a.evaluation[1]: holds a password" in refused(lambda: load_config(listed))


def test_one_that_is_put_together_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", SECRET[0])
    file = top(tmp_path, "{name: x, tracking: {uri: '${oc.env:PLACE}'}}")
    assert "tracking.uri: holds a password" in refused(lambda: load_config(file))
    said = refused(lambda: load_config(top(tmp_path, "{name: x, output: '${oc.env:${oc.env:PLACE}}'}")))
    assert "not found" in said
    said = refused(lambda: load_config(top(tmp_path), ['tracking.uri="http:\\x2f/user:canary@host"']))
    assert "tracking.uri: holds a password" in said


@pytest.mark.parametrize(
    "override",
    [
        f"nonsense={SECRET[0]}",
        f"seed={SECRET[0]}",
        SECRET[0],
        f"{SECRET[0]}=3",
        f"data.root=[{SECRET[0]}",
        f"data.root={{a: {SECRET[0]}, a: [",
        f"include=[{SECRET[0]}]",
    ],
)
def test_no_message_quotes_one(tmp_path: Path, override: str) -> None:
    assert "holds a password" in refused(lambda: load_config(top(tmp_path), [override]))


@pytest.mark.parametrize(
    "text",
    [
        f"include: ['{SECRET[0]}']",
        f"{{name: x, seed: '{SECRET[0]}'}}",
        f"{{name: x, '{SECRET[0]}': 3}}",
        f"{{name: x, output: '{SECRET[0]}', output: '{SECRET[0]}'}}",
        f"{{'{SECRET[0]}': 1, '{SECRET[0]}': 2}}",
        f"{{name: x, output: '${{none:{SECRET[0]}}}'}}",
    ],
)
def test_no_message_about_a_file_quotes_one(tmp_path: Path, text: str) -> None:
    refused(lambda: load_config(top(tmp_path, text)))


def test_a_file_is_named_without_one() -> None:
    assert "cannot be read" in refused(lambda: load_config(SECRET[0]))


@pytest.mark.parametrize("name", VARIABLES)
def test_the_environment_holds_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, SECRET[0])
    assert name in refused(lambda: load_config(top(tmp_path)))
    assert name in refused(lambda: from_environment(name))
    monkeypatch.setenv(name, "http://host:5000")
    assert from_environment(name) == "http://host:5000"
    assert load_config(top(tmp_path)) == Config(name="x")
    monkeypatch.delenv(name)
    assert from_environment(name) == ""


@pytest.mark.parametrize(
    ("key", "address", "place"),
    [
        ("tracking.uri", "http://u:p@h", "MLFLOW_TRACKING_PASSWORD"),
        ("environment.MLFLOW_TRACKING_URI", "http://u:p@h", "MLFLOW_TRACKING_PASSWORD"),
        ("tracking.uri", "postgresql://u:p@h/db", "PGPASSWORD"),
        ("evaluation.judge.endpoint", "http://h/v1?key=p", "OPENAI_API_KEY"),
        ("data.root", "s3://u:p@h", "fsspec"),
    ],
)
def test_the_sentence_says_where_it_belongs(key: str, address: str, place: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}: holds a password.*{place}"):
        refuse_secrets("top.yaml", tree={key: address})
