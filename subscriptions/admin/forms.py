"""Forms for people: one topic pattern a line, groups of patterns as checkboxes."""

from __future__ import annotations

import json
from typing import Any, ClassVar

from django import forms
from django.utils.text import Truncator
from unfold.widgets import (
    UnfoldAdminCheckboxSelectMultipleWidget,
    UnfoldAdminRadioSelectWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
)

from subscriptions.conf import conf
from subscriptions.models import Subscription
from subscriptions.querysets import FIXED
from subscriptions.validators import validate_headers, validate_patterns


class PatternsField(forms.CharField):
    """A list of topic patterns, edited as lines. Whether they are valid, the form decides."""

    widget = forms.Textarea

    def prepare_value(self, value: Any) -> Any:
        if _are_texts(value):
            return "\n".join(value)
        # What somebody wrote past the validation is shown as it is, to be repaired.
        return value if value is None or isinstance(value, str) else json.dumps(value)

    def to_python(self, value: Any) -> list[str]:  # type: ignore[override]
        text = str(value or "").strip()
        # As the API and the commands write it: somebody pasted a whole list.
        if text.startswith("[") and (pasted := _list_of_texts(text)) is not None:
            return pasted
        lines = (line.strip() for line in text.splitlines())
        return list(dict.fromkeys(line for line in lines if line))

    def has_changed(self, initial: Any, data: Any) -> bool:
        return bool((initial or []) != self.to_python(data))


def _lines(value: Any) -> list[str]:
    """A field's value as lines of text, however it came: to be compared, and to be read."""
    if isinstance(value, list):
        return sorted(map(str, value))
    return [line.strip() for line in ("" if value is None else str(value)).splitlines()]


def _list_of_texts(text: str) -> list[str] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if _are_texts(value) else None


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


class HeadersField(forms.JSONField):
    """Headers as a JSON object; nothing stands for none of them."""

    def to_python(self, value: Any) -> Any:
        try:
            found = super().to_python(value)
        except RecursionError:
            raise forms.ValidationError(
                "The headers are nested too deeply: they are a JSON object of texts."
            ) from None
        return {} if found is None else found

    def bound_data(self, data: Any, initial: Any) -> Any:
        try:
            return super().bound_data(data, initial)
        except RecursionError:
            return forms.fields.InvalidJSONInput(data)

    def validate(self, value: Any) -> None:
        # The model's own validators are not asked for what counts as empty, such as `[]`.
        validate_headers(value)


class SubscriptionForm(forms.ModelForm):  # type: ignore[type-arg]
    """Topic patterns by line and by group.

    Only what this very form changed is written: somebody else may have changed the rest, or the
    circuit may have tripped, while it was open. What both have changed is refused once.
    """

    groups = forms.MultipleChoiceField(
        label="Topic groups",
        required=False,
        widget=UnfoldAdminCheckboxSelectMultipleWidget,
        help_text="Groups of topic patterns, named in WEBHOOKS_TOPIC_GROUPS.",
    )
    topic_patterns = PatternsField(
        required=False,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 6}),
        help_text="One pattern a line, such as order.* or attacker.>: * is exactly one token, "
        "> at the end is one or more.",
    )

    class Meta:
        model = Subscription
        fields: ClassVar = [
            "tenant",
            "all_tenants",
            "name",
            "url",
            "topic_patterns",
            "enabled",
            "max_in_flight",
            "recovery",
            "headers",
        ]
        field_classes: ClassVar = {"headers": HeadersField}
        widgets: ClassVar = {
            "url": UnfoldAdminTextInputWidget(),
            "headers": UnfoldAdminTextareaWidget(attrs={"rows": 3}),
        }
        help_texts: ClassVar = {
            "enabled": "Ticking it resets a tripped circuit, or resumes what is paused; what was "
            "held is sent. Clearing it pauses.",
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "groups" in self.fields:
            self._offer_groups()
        for name in FIXED.keys() & self.fields.keys():
            self.fields[name].disabled = not self.instance._state.adding
        if not self.instance._state.adding:
            for field in self.fields.values():
                field.show_hidden_initial = not field.disabled

    def _keep_what_others_changed(self, cleaned: dict[str, Any]) -> None:
        """Of the fields that this form has not changed, take what the row has by now."""
        fields = {name: one for name, one in self.fields.items() if one.show_hidden_initial}
        if not any(self[name].html_initial_name in self.data for name in fields):
            return
        for name, field in fields.items():
            now = self.initial.get(name)
            if name not in self.changed_data:
                # Patterns that are no texts are shown as JSON, to be repaired.
                if name != "topic_patterns" or _are_texts(now):
                    cleaned[name] = now
            # The circuit is not asked: who ticks `enabled` wants it so, whatever was before.
            elif name != "enabled" and self._shown(name) != _lines(
                as_text := field.prepare_value(now)
            ):
                self.add_error(
                    name,
                    "Somebody has changed this since the page was opened. It is now: "
                    f"{Truncator(', '.join(_lines(as_text)) or 'empty').chars(300)}. "
                    "Save again to have yours instead.",
                )
                self._show(name, as_text)

    def _shown(self, name: str) -> list[str]:
        """What the field held when the page was opened."""
        hidden = self.fields[name].hidden_widget()
        shown = hidden.value_from_datadict(self.data, self.files, self[name].html_initial_name)
        return _lines(shown)

    def _show(self, name: str, value: Any) -> None:
        """Open the page anew, as far as this field goes."""
        data: Any = self.data
        self.data = data = data.copy()
        data.setlist(self[name].html_initial_name, value if isinstance(value, list) else [value])

    def _offer_groups(self) -> None:
        groups = conf().topic_groups
        if not groups:
            del self.fields["groups"]
            return
        self.fields["groups"].choices = [  # type: ignore[attr-defined]
            (name, f"{name} ({', '.join(patterns)})") for name, patterns in groups.items()
        ]
        patterns = self.initial.get("topic_patterns", [])
        if isinstance(patterns, list):
            chosen = [name for name in groups if set(groups[name]) <= set(map(str, patterns))]
            covered = {pattern for name in chosen for pattern in groups[name]}
            self.initial["groups"] = chosen
            self.initial["topic_patterns"] = [
                pattern for pattern in patterns if pattern not in covered
            ]

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        if not self.instance._state.adding:
            self._keep_what_others_changed(cleaned)
        if "topic_patterns" in cleaned:
            groups = conf().topic_groups
            patterns = list(cleaned["topic_patterns"])
            for name in cleaned.get("groups", []):
                patterns += groups[name]
            cleaned["topic_patterns"] = list(dict.fromkeys(patterns))
            try:
                validate_patterns(cleaned["topic_patterns"])
            except forms.ValidationError as error:
                self.add_error("topic_patterns", error)
        return cleaned


class RotateSecretForm(forms.Form):
    """How long the old secrets stay valid.

    `newest`: the id of the newest secret of the chosen subscriptions (0: there is none). The form
    is refused if that is no longer the one that it was shown with: a page that is reloaded, or
    sent by two people, rotates once.
    """

    NOW = "0"
    OVERLAP = "overlap"

    old_secret = forms.ChoiceField(label="The old secret", widget=UnfoldAdminRadioSelectWidget)
    shown_with = forms.IntegerField(widget=forms.HiddenInput)

    def __init__(self, *args: Any, newest: int, many: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.newest = newest
        self.fields["shown_with"].initial = newest
        hours = f"{conf().secret_overlap / 3600:g}"
        self.fields["old_secret"].choices = [  # type: ignore[attr-defined]
            (
                self.OVERLAP,
                f"stay valid for {hours} hours, so that the receivers can change over"
                if many
                else f"stays valid for {hours} hours, so that the receiver can change over",
            ),
            (self.NOW, "end now: they have leaked" if many else "ends now, because it has leaked"),
        ]
        if many:
            self.fields["old_secret"].label = "The old secrets"
        self.fields["old_secret"].initial = self.OVERLAP

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        if cleaned.get("shown_with") != self.newest:
            # What is shown next is a form for the secret that there is now.
            self.data = {**self.data, "shown_with": self.newest}
            raise forms.ValidationError(
                "Nothing was done: the secret was rotated after this page was opened, by you or "
                "by somebody else. If the new secret is lost, rotate it again."
            )
        return cleaned

    def overlap(self) -> float:
        """In seconds."""
        if self.cleaned_data["old_secret"] == self.NOW:
            return 0.0
        return conf().secret_overlap
