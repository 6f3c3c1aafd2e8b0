"""Checks whether the app answers, and explains why it does not."""

from __future__ import annotations

from infra.deployers.context import Context
from infra.deployers.errors import DeployError
from infra.deployers.probe import Address, Answer, probe

_SECONDS = 3.0


class Asker:
    """Requests `health_path` from one app and remembers the last answer."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.answer: Answer | None = None

    def answers(self, address: Address | None) -> bool:
        """Whether the app now gives an acceptable answer (`Context.accepts`)."""
        context = self._context
        self.answer = answer = self._ask(address) if address else None
        return bool(address and answer and context.accepts(answer, address))

    def _ask(self, address: Address) -> Answer | None:
        context = self._context
        return probe(address, context.domain, context.health_path, _SECONDS, context.health_status)

    def late(self, address: Address, port: int, asked_for: str) -> DeployError:
        """The error for an app that runs but did not answer in time. `asked_for`: a note on the recipe's own timeout, if any."""
        context, answer = self._context, self.answer
        if context.proxy_url:
            return self._not_through_proxy(address)
        message = f"All services are running, but the app did not answer on port {port} within {context.settle_seconds} s"
        if answer is None:
            elsewhere = "" if context.app else " If it serves no web there, set no_web in cc-ci.toml, under [app], to the reason."
            return DeployError("never_answered", f"{message}.{asked_for}", f"See the services' logs.{elsewhere}")
        return DeployError(
            "never_answered", f"{message} as expected: {self._last(answer)}.{asked_for}", "See the services' logs."
        )

    def _last(self, answer: Answer) -> str:
        wanted = " or ".join(str(status) for status in self._context.health_status)
        return f"{answer.summary(self._context.health_path)}{f', not {wanted}' if wanted and not answer.circle else ''}"

    def _not_through_proxy(self, address: Address) -> DeployError:
        context, answer = self._context, self.answer
        proxy = f"the server's proxy at {context.proxy_url}"
        if answer is None:
            try:
                address.connect(_SECONDS, context.domain).close()
            except OSError as error:
                message = f"All services are running, but {proxy} cannot be reached: {error}."
                return DeployError("tool_failed", message, "Start it, or correct CC_CI_PROXY_URL.")
        elif answer.only_to_https(address):
            message = f"All services are running, but {proxy} only redirects to {answer.location}, and nothing answers there."
            return DeployError("tool_failed", message, "Set CC_CI_PROXY_URL to its https:// address.")
        message = (
            f"All services are running, but {proxy} returned no answer from the app for {context.domain} within "
            f"{context.settle_seconds} s:"
        )
        if answer is None:
            return DeployError("never_answered", f"{message} it did not respond.", "See the services' logs.")
        if answer.from_proxy(address):
            fix = "Check the labels traefik.http.routers.*.rule and .entrypoints, and traefik.enable."
            return DeployError("never_answered", f"{message} none of its routers matches that host.", fix)
        if answer.circle or (context.health_status and answer.status < 500):
            return DeployError("never_answered", f"{message} {self._last(answer)}.", "See the services' logs.")
        fix = "Check the label loadbalancer.server.port, and that the service is on the network proxy."
        return DeployError("never_answered", f"{message} {self._last(answer)}.", fix)
