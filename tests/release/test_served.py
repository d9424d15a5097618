"""The release behind a registered version, found by the registry and held against what was registered."""

from pathlib import Path

import pytest

from megatron_af.config import ConfigError
from megatron_af.release.commands import SERVING
from megatron_af.release.served import release_of
from megatron_af.release.versions import UnknownVersion
from megatron_af.runs.digests import DigestMismatch, record_digest
from megatron_af.tracking.store import open_client

import mlflow  # isort: skip  (after store, which sets its environment)


def test_from_an_alias_to_the_release(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    release = tmp_path / "release"
    release.mkdir()
    (release / "weights").write_text("right")
    settings = {"release": release.as_uri(), "digest": record_digest(release), "audio_folder": ""}
    model = tmp_path / "model"
    mlflow.pyfunc.save_model(
        str(model), python_model=str(SERVING), model_config=settings, pip_requirements=["megatron-af"]
    )
    client = open_client(store)
    client.create_registered_model("af")
    client.create_model_version("af", str(model))
    client.set_registered_model_alias("af", "champion", "1")
    assert release_of("models:/af@champion") == release_of("models:/af/1") == release
    for gone in ("models:/af@candidate", "models:/af/2", "models:/other@champion"):
        with pytest.raises(UnknownVersion, match=rf"{gone}: .*MLFLOW_TRACKING_URI names the registry"):
            release_of(gone)
    (release / "weights").write_text("wrong")
    with pytest.raises(DigestMismatch):
        release_of("models:/af@champion")
    release.rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=f"models:/af@champion: its release, {release.as_uri()}, cannot be"):
        release_of("models:/af@champion")


@pytest.mark.parametrize("settings", [None, {"device": "cpu"}])
def test_a_model_of_somebody_elses_is_named_as_that(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str] | None
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    mlflow.pyfunc.save_model(
        str(tmp_path / "model"), python_model=str(SERVING), model_config=settings, pip_requirements=["theirs"]
    )
    client = open_client(store)
    client.create_registered_model("theirs")
    client.create_model_version("theirs", str(tmp_path / "model"))
    with pytest.raises(UnknownVersion, match=r"models:/theirs/1: .*something else than .*promote.py register"):
        release_of("models:/theirs/1")


def test_a_registry_with_a_password_in_its_address_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:canary@127.0.0.1:9")
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI: holds a password") as caught:
        release_of("models:/demo@champion")
    assert "canary" not in str(caught.value)
