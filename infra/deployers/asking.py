"""Asking the app whether it answers, and saying why it does not."""

from __future__ import annotations

from infra.deployers.base import Address, Answer, Context, DeployError, probe

_SECONDS = 3.0


class Asker:
    """Asks one app for `health_path`, and remembers the last answer."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.said: Answer | None = None

    def answers(self, address: Address | None) -> bool:
        """Whether the app gives an answer that counts (`Context.accepts`) now."""
        context = self._context
        self.said = answer = probe(address, context.domain, context.health_path, timeout=_SECONDS) if address else None
        return bool(address and answer and context.accepts(answer, address))

    def late(self, address: Address, port: int, asked_for: str) -> DeployError:
        """Why an app that runs did not answer in time. `asked_for` says how long the recipe itself wanted, if it does."""
        context, answer = self._context, self.said
        if context.proxy_url:
            return self._not_through_proxy(address)
        said = f"Everything runs, but the app did not answer on port {port} within {context.settle_seconds} s"
        if answer is None:
            return DeployError("never_answered", f"{said}.{asked_for}", "See the services' logs.")
        return DeployError("never_answered", f"{said} as it should: {self._last(answer)}.{asked_for}", "See the services' logs.")

    def _last(self, answer: Answer) -> str:
        wanted = " or ".join(str(status) for status in self._context.health_status)
        return f"GET {self._context.health_path} gave {answer.status}{f', not {wanted}' if wanted else ''}"

    def _not_through_proxy(self, address: Address) -> DeployError:
        context, answer = self._context, self.said
        proxy = f"the server's proxy at {context.proxy_url}"
        if answer is None:
            try:
                address.connect(_SECONDS, context.domain).close()
            except OSError as error:
                said = f"Everything runs, but {proxy} cannot be reached: {error}."
                return DeployError("tool_failed", said, "Start it, or correct CC_CI_PROXY_URL.")
        elif answer.only_to_https(address):
            said = f"Everything runs, but {proxy} only leads to https, for every host."
            return DeployError("tool_failed", said, "Give CC_CI_PROXY_URL its https:// address.")
        said = f"Everything runs, but {proxy} gave no answer of the app for {context.domain} within {context.settle_seconds} s:"
        if answer is None:
            return DeployError("never_answered", f"{said} it stayed silent.", "See the services' logs.")
        if answer.from_proxy(address):
            fix = "Check the labels traefik.http.routers.*.rule and .entrypoints, and traefik.enable."
            return DeployError("never_answered", f"{said} none of its routers knows that host.", fix)
        if context.health_status and answer.status < 500:
            return DeployError("never_answered", f"{said} {self._last(answer)}.", "See the services' logs.")
        fix = "Check the label loadbalancer.server.port, and that the service is on the network proxy."
        return DeployError("never_answered", f"{said} the last one was {answer.status}.", fix)
