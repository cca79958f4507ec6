"""What the tests of the admin of subscriptions share."""

from __future__ import annotations

import html
import re
from typing import Any

from django.contrib.messages import get_messages
from django.test import Client
from django.urls import reverse

from subscriptions.models import Subscription

LIST = "/admin/subscriptions/subscription/"
SECRET = re.compile(r"whsec_[A-Za-z0-9+/=]+")


def change_page(subscription: Subscription) -> str:
    return reverse("admin:subscriptions_subscription_change", args=[subscription.pk])


def act(client: Client, action: str, *chosen: Subscription) -> list[str]:
    """Run an action on the list; returns the messages."""
    response = client.post(
        LIST,
        {
            "action": action,
            "_selected_action": [str(one.pk) for one in chosen],
            "confirmed": "1",
            "held": "send",
        },
    )
    assert response.status_code == 302, response.content.decode()
    told = [str(message) for message in get_messages(response.wsgi_request)]
    client.get(LIST)  # shows the messages, so that they are not told again
    return told


def fields(**changes: Any) -> dict[str, Any]:
    return {
        "name": "billing",
        "url": "https://example.com/hook",
        "topic_patterns": "order.*",
        "enabled": "on",
        "max_in_flight": "10",
        "recovery": "automatic",
        "headers": "{}",
        **changes,
    }


def shown_form(client: Client, subscription: Subscription) -> dict[str, Any]:
    """What a browser would send if the person changed nothing."""
    return filled(client.get(change_page(subscription)).context["adminform"].form)


def filled(form: Any) -> dict[str, Any]:
    """What a browser would send of the form as it is shown."""
    sent: dict[str, Any] = {}
    for bound in form:
        value = bound.value()
        if value not in (False, None):
            sent[bound.html_name] = "on" if value is True else value
        if bound.field.show_hidden_initial:
            hidden = re.findall(r' value="([^"]*)"', str(bound.as_hidden(only_initial=True)))
            if hidden:
                sent[bound.html_initial_name] = [html.unescape(one) for one in hidden]
    return sent
