"""The API put together: routes, errors, the OpenAPI document."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, get_type_hints

from django.http import HttpRequest, HttpResponse
from ninja import NinjaAPI
from ninja.errors import HttpError, ValidationErrorContext
from ninja.errors import ValidationError as NinjaValidationError
from ninja.openapi.docs import Swagger
from ninja.openapi.schema import OpenAPISchema
from ninja.params.models import Query
from ninja.parser import Parser

from api import bodies, problems
from api.auth import ApiKeyAuth
from api.json import escape, parse
from api.problems import Problem, invalid
from api.v1 import deliveries, events, subscription_actions, subscriptions


class _Parser(Parser):
    def parse_body(self, request: HttpRequest) -> Any:
        return parse(request.body)


class _Document(OpenAPISchema):
    """What ninja writes, with scopes, and errors in the media type that they have."""

    def operation_security(self, operation: Any) -> Any:
        security = super().operation_security(operation)
        for requirement, auth in zip(security or [], operation.auth_callbacks, strict=True):
            if isinstance(auth, ApiKeyAuth):
                requirement[type(auth).__name__] = [auth.scope]
        return security

    def responses(self, operation: Any) -> Any:
        found = super().responses(operation)
        if any(isinstance(auth, ApiKeyAuth) for auth in operation.auth_callbacks):
            sources = {model.__ninja_param_source__ for model in operation.models}
            for status in (
                *problems.OF_EVERY_ROUTE,
                *(problems.OF_A_BODY if bodies.METHODS & set(operation.methods) else ()),
                *(problems.OF_PARAMETERS if sources else ()),
            ):
                found.setdefault(status, {})
        for status, answer in found.items():
            if status >= 400:
                answer["description"] = problems.PHRASES[status]
                answer["content"] = {
                    problems.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemBody"}}
                }
            if status in problems.HEADERS:
                name, kind, description = problems.HEADERS[status]
                header = {"description": description, "schema": {"type": kind}}
                answer["headers"] = {name: header}
        return dict(sorted(found.items()))


class _Page(Swagger):
    """The page for people. All that it needs comes from here; it remembers no key."""

    template = "api/docs.html"

    def render_page(self, request: HttpRequest, api: NinjaAPI, **kwargs: Any) -> HttpResponse:
        response = super().render_page(request, api, **kwargs)
        response["Content-Security-Policy"] = (
            "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; "
            "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
        )
        return response


def _known_parameters_only(view: Callable[..., Any]) -> Callable[..., Any]:
    """422 for a parameter of the query that the operation does not have, or that is there twice: a
    filter with a slip in its name would choose everything. Parameters are declared by `Query`."""
    known = [
        name
        for name, hint in get_type_hints(view, include_extras=True).items()
        if any(isinstance(one, Query) for one in getattr(hint, "__metadata__", ()))
    ]
    others = f"; there are: {', '.join(sorted(known))}." if known else ", nor any other."
    detail = f"There is no such parameter here{others}"

    @functools.wraps(view)
    def checked(request: HttpRequest, **values: Any) -> Any:
        wrong = {
            name: "It is there more than once." if name in known else detail
            for name, given in request.GET.lists()
            if name not in known or len(given) > 1
        }
        if wrong:
            raise invalid([{"parameter": name, "detail": what} for name, what in wrong.items()])
        return view(request, **values)

    return checked


class Api(NinjaAPI):
    """Ninja's, strict about bodies and parameters, and with every error as a `Problem`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"parser": _Parser(), **options})
        self.add_decorator(_known_parameters_only)

    def set_default_exception_handlers(self) -> None:
        self.add_exception_handler(Exception, _answer)

    def validation_error_from_error_contexts(
        self, error_contexts: list[ValidationErrorContext[Any]]
    ) -> NinjaValidationError:
        raise invalid([error for context in error_contexts for error in _errors(context)])

    def get_openapi_schema(self, **kwargs: Any) -> OpenAPISchema:
        return _Document(self, "/api/")


def _answer(request: HttpRequest, error: Any) -> HttpResponse:
    # Ninja hides what the parser raised behind an error of its own.
    if isinstance(error, HttpError) and isinstance(error.__cause__, Problem):
        error = error.__cause__
    return problems.from_exception(error).response()


def _errors(context: ValidationErrorContext[Any]) -> list[dict[str, str]]:
    model: Any = context.model
    found = []
    for error in context.pydantic_validation_error.errors(include_url=False, include_input=False):
        place = list(model.__ninja_flatten_map_reverse__.get(error["loc"], error["loc"]))
        detail = error["msg"]
        source = model.__ninja_param_source__
        if source == "body":
            # The first step is the name of the view's argument.
            if getattr(model, "__read_from_single_attr__", None):
                del place[:1]
            if not place and error["type"] == "missing":
                detail = "A body is needed: a JSON document."
            steps = "".join(f"/{escape(str(step))}" for step in place)
            found.append({"pointer": steps, "detail": detail})
        else:
            name = str(place[-1]) if place else ""
            found.append({"header" if source == "header" else "parameter": name, "detail": detail})
    return found


api = Api(
    title="Webhooks",
    version="1",
    description=(
        "Publish events, manage subscriptions, see and repeat deliveries. Every request needs a "
        "key, as `Authorization: Bearer whk_…`; every error is a problem of RFC 9457. What goes "
        "for all operations, and each problem, is explained in `docs/api.md`."
    ),
    urls_namespace="api",
    docs=_Page(),
    docs_url="/docs",
    openapi_url="/openapi.json",
)
api.add_router("/v1/subscriptions", subscriptions.router)
api.add_router("/v1/subscriptions", subscription_actions.router)
api.add_router("/v1/events", events.router)
api.add_router("/v1/deliveries", deliveries.router)
