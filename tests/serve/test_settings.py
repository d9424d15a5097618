"""Settings of a server: read whole, and every problem named with its key."""

import socket
from pathlib import Path

import pytest

from megatron_af.config import ConfigError
from megatron_af.serve.settings import KEYS, ServingConfig, check_address, keys, load_settings

SHIPPED = sorted((Path(__file__).parents[2] / "configs/serving").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_what_is_shipped_loads(path: Path) -> None:
    assert load_settings(path) == ServingConfig()
    assert load_settings(path, ["port=0", "waiting_requests=0"]).port == 0


def test_every_problem_is_named() -> None:
    beyond = ["default_new_tokens=600", "port=99999"]
    wrong = ["n=3"], ["batch_requests=0", "max_audio_seconds=0", "audio_folder=/none", *beyond]
    with pytest.raises(ConfigError, match="n"):
        load_settings(SHIPPED[0], wrong[0])
    with pytest.raises(ConfigError) as error:
        load_settings(SHIPPED[0], wrong[1])
    for says in (
        "batch_requests = 0: write 1 or more",
        "max_audio_seconds = 0: write more than 0",
        "audio_folder = /none: not there",
        "port = 99999: write 65535 or less",
        "default_new_tokens = 600 is more than max_new_tokens = 512",
    ):
        assert says in str(error.value)


def test_an_address_where_nobody_can_listen_is_named() -> None:
    check_address(ServingConfig(port=0))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"host = 127.0.0.1, port = {port}: Address already in use; name others"):
            check_address(ServingConfig(port=port))
    check_address(ServingConfig(port=port))
    with pytest.raises(ConfigError, match=r"host = 192\.0\.2\.1, port = 0: Cannot assign requested address"):
        check_address(ServingConfig(host="192.0.2.1", port=0))


def test_keys_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEYS, raising=False)
    assert keys() == frozenset()
    monkeypatch.setenv(KEYS, "one, two\nthree\n")
    assert keys() == {"one", "two", "three"}
