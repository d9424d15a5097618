from collections.abc import Callable, Iterator

import pytest

from tests.prepare.endpoint import Answer, Server


@pytest.fixture
def start() -> Iterator[Callable[[Answer], Server]]:
    servers: list[Server] = []

    def make(answer: Answer) -> Server:
        servers.append(Server(answer))
        return servers[-1]

    yield make
    for server in servers:
        server.close()
