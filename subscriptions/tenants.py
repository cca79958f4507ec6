"""What a tenant is: a short text that says whose events and subscriptions these are. Pure.

The empty text is the application itself. An event reaches the subscriptions of its own tenant, and
those of the application that are marked `all_tenants`.
"""

from __future__ import annotations

MAX_LENGTH = 64


class InvalidTenant(ValueError):
    """The text cannot be a tenant."""


def validate_tenant(tenant: object) -> str:
    """`tenant`, if it can be one; otherwise `InvalidTenant` says what is wrong.

    At most 64 printable characters, without a space at either end. Case counts, and text is
    compared as it is, without Unicode normalization.
    """
    if tenant == "":
        return ""
    if not isinstance(tenant, str):
        raise InvalidTenant(
            f"The tenant {str(tenant)[:80]!r} is a {type(tenant).__name__}; give it as a string, "
            "empty for the application itself."
        )
    if len(tenant) > MAX_LENGTH:
        raise InvalidTenant(
            f"The tenant {tenant[:80]!r} has {len(tenant)} characters; {MAX_LENGTH} are allowed."
        )
    if tenant != tenant.strip() or not tenant.isprintable():
        raise InvalidTenant(
            f"The tenant {tenant!r} begins or ends with a space, or has characters that do not "
            "print; leave them out."
        )
    return tenant
