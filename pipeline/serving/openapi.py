"""The API's description: OpenAPI 3.1."""

from typing import Any

from pipeline import __version__
from pipeline.serving.settings import PARAMETERS, Parameter
from pipeline.serving.upload import FIELD, MULTIPART, TYPES, Limits

Schema = dict[str, Any]

PROBABILITY: Schema = {"type": "number", "minimum": 0, "maximum": 1}
OPTIONAL: Schema = {**PROBABILITY, "type": ["number", "null"]}
SUMMARY: Schema = {
    "caption": {"type": "string"},
    "confidence": {
        **OPTIONAL,
        "description": "The probability that the caption is as good as a typical person's; null if "
        "the model was not calibrated.",
    },
    "score": {"type": ["number", "null"], "description": "Of the search: the higher, the better."},
}
ATTENTION: Schema = {
    "type": "array",
    "items": {"type": "array", "items": PROBABILITY},
    "description": "Where the model looked, row by row, in the part of the image in `seen`.",
}
TOKEN: Schema = {"token": {"type": "string"}, "probability": PROBABILITY, "attention": ATTENTION}
IMAGE: Schema = {
    "width": {"type": "integer", "minimum": 1},
    "height": {"type": "integer", "minimum": 1},
    "seen": {
        "type": "array",
        "items": {"type": "number"},
        "minItems": 4,
        "maxItems": 4,
        "description": "Left, top, width and height of what the model sees, as fractions.",
    },
}
REFUSALS = {
    403: "A browser sent it for another site's page.",
    408: "The image arrived too slowly.",
    413: "The image has too many bytes or pixels.",
    415: "This is not an image of a supported format.",
    421: "The request is for another host (`showtell serve --allowed-host`).",
    422: "The image cannot be decoded, or a parameter is out of bounds.",
    500: "The captioner failed.",
    503: "The server is busy; Retry-After says when to try again.",
}


def openapi(limits: Limits) -> dict[str, Any]:
    """Return the description of a server with these limits."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "showtell",
            "version": __version__,
            "description": "Captions images. Errors are JSON with one line, `error`.",
        },
        "paths": {
            "/api/caption": {"post": _caption(limits)},
            "/api/model": {"get": _get("model", "The model card", {"type": "object"})},
            "/health": {"get": _health()},
            "/metrics": {"get": _get("metrics", "Metrics", {"type": "string"}, "text/plain")},
        },
        "components": {
            "schemas": {
                "Alternative": _object(SUMMARY),
                "Caption": _object(
                    {
                        **SUMMARY,
                        "tokens": {"type": "array", "items": _object(TOKEN, {"attention"})},
                        "alternatives": {"type": "array", "items": _ref("Alternative")},
                        "image": _object(IMAGE),
                    }
                ),
                "Error": _object({"error": {"type": "string"}}),
            }
        },
    }


def _caption(limits: Limits) -> dict[str, Any]:
    binary: Schema = {"schema": {"type": "string", "format": "binary"}}
    form = _object({FIELD: {"type": "string", "format": "binary"}})
    bodies = {kind: binary for kind in (*TYPES, "application/octet-stream")}
    return {
        "operationId": "caption",
        "summary": "Caption an image",
        "description": f"At most {limits.max_bytes / 1e6:g} MB and {limits.max_pixels / 1e6:g} "
        "megapixels. What a request does not set is the model's default (`/api/model`).",
        "parameters": [_parameter(name, one) for name, one in PARAMETERS.items()],
        "requestBody": {"required": True, "content": {**bodies, MULTIPART: {"schema": form}}},
        "responses": {
            "200": _response("The caption", _ref("Caption")),
            **{str(status): _response(why, _ref("Error")) for status, why in REFUSALS.items()},
        },
    }


def _parameter(name: str, parameter: Parameter) -> dict[str, Any]:
    kinds = {int: "integer", float: "number", bool: "boolean"}
    schema: Schema = {"type": kinds[parameter.kind]}
    if parameter.kind is not bool:
        schema |= {"minimum": parameter.minimum, "maximum": parameter.maximum}
    return {"name": name, "in": "query", "description": parameter.description, "schema": schema}


def _health() -> dict[str, Any]:
    status = _object({"status": {"enum": ["ok", "stopping"]}})
    operation = _get("health", "Whether the server takes requests", status)
    operation["responses"]["503"] = _response("It is stopping.", status)
    return operation


def _get(name: str, summary: str, schema: Schema, kind: str = "application/json") -> dict[str, Any]:
    responses = {"200": _response(summary, schema, kind)}
    return {"operationId": name, "summary": summary, "responses": responses}


def _response(why: str, schema: Schema, kind: str = "application/json") -> dict[str, Any]:
    return {"description": why, "content": {kind: {"schema": schema}}}


def _object(properties: Schema, optional: set[str] | None = None) -> Schema:
    required = [name for name in properties if name not in (optional or set())]
    return {"type": "object", "properties": properties, "required": required}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}
