"""System checks of what sending needs besides the subscriptions' own."""

from collections.abc import Sequence
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, register

from deliveries.waking.redis_address import RedisAddress


@register("webhooks")
def check_redis(**_: Any) -> Sequence[CheckMessage]:
    address = getattr(settings, "REDIS_URL", None)
    if not address:
        wrong = "REDIS_URL is not set"
    else:
        try:
            RedisAddress.parse(address)
            return []
        except ValueError as error:
            wrong = f"REDIS_URL cannot be used: {error}"
    return [
        Error(
            f"{wrong}.",
            hint="Set REDIS_URL in the settings to the address of Redis or Valkey, such as "
            '"redis://127.0.0.1:6379/0"; RabbitMQ as the broker does not replace it.',
            id="webhooks.E010",
        )
    ]
