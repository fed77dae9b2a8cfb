"""What the OpenAPI document says besides what FastAPI derives of the routes: problems and links.

Which problems an operation may answer with follows from what it takes, by the rules of
`_statuses`; that there are no others is held by a test that sends anything to each of them.
"""

from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from ledgerbeam.service.problems import MEDIA_TYPE

_PROBLEM = {
    "type": "object",
    "description": "Problem details (RFC 9457); attributes of the error stand beside these members",
    "properties": {
        "type": {"type": "string", "description": "where the error is explained"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "one line: what, where, why, what to do"},
        "code": {"type": "string", "description": "of the error; it stays as it is"},
    },
    "required": ["type", "title", "status", "detail"],
}
_VERSIONED = ("RequestRecord", "ServedRun", "QueueRecord")
"""What has an `ETag` where it is answered alone."""

_LINKS = {
    "RequestRecord": [
        ("/v1/requests/{request_id}", "path.request_id", "/id"),
        ("/v1/runs/{run}", "path.run", "/run_id"),
        ("/v1/queues/{name}", "path.name", "/kind"),
    ],
    "RequestList": [
        ("/v1/requests/{request_id}", "path.request_id", "/items/0/id"),
        ("/v1/requests", "query.cursor", "/next"),
    ],
    "ServedRun": [("/v1/runs/{run}", "path.run", "/id")],
    "RunList": [
        ("/v1/runs/{run}", "path.run", "/items/0/id"),
        ("/v1/runs", "query.cursor", "/next"),
    ],
    "QueueRecord": [
        ("/v1/queues/{name}", "path.name", "/kind"),
        ("/v1/kinds/{name}", "path.name", "/kind"),
    ],
    "KindRecord": [("/v1/queues/{name}", "path.name", "/name")],
    "AuditPage": [("/v1/audit", "query.cursor", "/next")],
}
"""Where to go on from an answer: by its schema, to the operations at and below a path, with a
parameter that has the value of one of its fields."""


def complete(document: dict[str, Any]) -> dict[str, Any]:
    """Add to an OpenAPI document the problems, the headers and the links of each operation."""
    schemas = document["components"]["schemas"]
    schemas["ProblemDetails"] = _PROBLEM
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)  # FastAPI's own, which this service never sends
    for path, method, operation in _operations(document):
        for parameter in operation.get("parameters", ()):
            _without_null(parameter["schema"])
        answers = operation["responses"]
        answers.pop("422", None)
        for status, answer in answers.items():
            headers, links = _headers(status, answer), _links(document, answer)
            answer.update({"headers": headers} if headers else {}, **links)
        for problem in sorted(_statuses(path, method, operation)):
            answers[str(problem)] = {
                "description": HTTPStatus(problem).phrase,
                "content": {
                    MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}
                },
            }
    return document


def _without_null(schema: dict[str, Any]) -> None:
    """Nothing in an address or a header is null: what isn't given isn't there."""
    others = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    if len(others) == 1:
        del schema["anyOf"]
        schema |= others[0]


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield path, method, operation


def _statuses(path: str, method: str, operation: dict[str, Any]) -> set[int]:
    """The statuses of the problems that an operation may answer with."""
    if path == "/healthz":
        return {400}
    taken = {parameter["name"].lower() for parameter in operation.get("parameters", ())}
    found = {400, 502, 503}
    if path.startswith("/v1/") and not path.startswith("/v1/problems"):
        found |= {401, 403}
    if "{" in path:
        found.add(404)
    if path.startswith("/v1/runs"):
        # Ids may be shortened, names and parameters be wrong, results expire.
        found |= {404, 409, 410, 422}
    if path.startswith("/v1/bulk"):
        found.add(422)
    if "if-match" in taken:
        found |= {409, 412}
    if "idempotency-key" in taken or method == "patch":
        found |= {409, 422}
    if "requestBody" in operation:
        found |= {413}
    return found


def _headers(status: str, answer: dict[str, Any]) -> dict[str, Any]:
    text = {"type": "string"}
    found = {}
    if status == "202":
        found["Location"] = {"description": "of the request", "schema": text, "required": True}
    if _schema_of(answer) in _VERSIONED:
        told = "for `If-Match`, by which nobody else's change is undone"
        found["ETag"] = {"description": told, "schema": text, "required": True}
    return found


def _links(document: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for below, parameter, field in _LINKS.get(_schema_of(answer), ()):
        for path, _, operation in _operations(document):
            is_list = parameter.startswith("query.")
            if path == below or (not is_list and path.startswith(f"{below}/")):
                found[operation["operationId"]] = {
                    "operationId": operation["operationId"],
                    "parameters": {parameter: f"$response.body#{field}"},
                }
    return {"links": found} if found else {}


def _schema_of(answer: dict[str, Any]) -> str:
    """The name of the schema of an answer, or of what it is a list of; empty where it has none."""
    content: dict[str, Any] = answer.get("content", {}).get("application/json", {})
    reference: str = content.get("schema", {}).get("$ref", "")
    return reference.rpartition("/")[2]
