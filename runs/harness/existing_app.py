"""An app that somebody else deployed, as a deployer that knows only its address (`cc-ci test --app`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from infra.deployers.base import Deployer, Deployment
from infra.deployers.context import Context
from infra.deployers.errors import DeployError
from infra.deployers.probe import Address


class ExistingApp(Deployer):
    name = "existing"

    def __init__(self, context: Context, url: str) -> None:
        super().__init__(context)
        parts = urlsplit(url)
        tls = parts.scheme == "https"
        self._address = Address(parts.hostname or "", parts.port or (443 if tls else 80), tls=tls, given=True)

    def cannot(self, what: str) -> DeployError:
        return DeployError("not_applicable", f"cc-ci did not deploy this app (--app), so it cannot {what}.")

    def deploy(self, checkout: Path | None = None) -> None:
        raise self.cannot("deploy it")

    def settle(self) -> Deployment:
        raise self.cannot("wait for its services")

    def state(self) -> Deployment:
        raise self.cannot("inspect its services")

    def address(self) -> Address:
        return self._address

    def logs(self, service: str = "", lines: int = 50) -> str:
        raise self.cannot("read its logs")

    def execute(self, service: str, command: Sequence[str], timeout: float = 60.0) -> tuple[int, str]:
        raise self.cannot("run commands in it")

    def teardown(self) -> list[str]:
        return []
