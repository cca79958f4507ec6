"""Our own web as the receiver of a subscription: refused, so that nothing goes round in a loop."""

from __future__ import annotations

from collections.abc import Callable

from django.http import HttpRequest, HttpResponse, HttpResponseForbidden

REFUSAL = (
    "This is the webhook sender itself, which receives no webhooks. "
    "Change the URL of the subscription.\n"
)


class RefuseOwnWebhooks:
    """Middleware: 403 for every request with the headers of a webhook, wherever it is sent.

    403 is final: the delivery fails at once, with the sentence as its error, and the circuit
    counts it. A page that answered 200 would look like a receiver that has the event.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        if "HTTP_WEBHOOK_ID" in request.META and "HTTP_WEBHOOK_SIGNATURE" in request.META:
            return HttpResponseForbidden(REFUSAL, content_type="text/plain")
        return self._get_response(request)
