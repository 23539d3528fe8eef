"""/openapi.json: the description of the API, made from what reads its requests."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec

from node.api.http import schema
from node.api.http.anthropic import schema as anthropic
from node.api.http.ollama import schema as ollama

_POSTS: dict[str, tuple[type, str]] = {
    "/v1/chat/completions": (schema.ChatRequest, "Answer a conversation"),
    "/v1/completions": (schema.CompletionRequest, "Go on with a text"),
    "/v1/responses": (schema.ResponsesRequest, "Answer, by the Responses API"),
    "/v1/embeddings": (schema.EmbeddingRequest, "Vectors of texts"),
    "/v1/messages": (anthropic.MessagesRequest, "Answer a conversation, by Anthropic's API"),
    "/v1/messages/count_tokens": (anthropic.CountRequest, "How many tokens a conversation has, by Anthropic's API"),
    "/tokenize": (schema.TokenizeRequest, "Tokens of a text, as llama-server has it"),
    "/detokenize": (schema.DetokenizeRequest, "The text of tokens, as llama-server has it"),
    "/apply-template": (schema.TemplateRequest, "A conversation as the model reads it, as llama-server has it"),
    "/api/chat": (ollama.ChatRequest, "Answer a conversation, by Ollama's API"),
    "/api/generate": (ollama.GenerateRequest, "Answer a prompt, by Ollama's API"),
    "/api/embed": (ollama.EmbedRequest, "Vectors of texts, by Ollama's API"),
    "/api/embeddings": (ollama.EmbedRequest, "The vector of a text, by Ollama's older API"),
    "/api/show": (ollama.ShowRequest, "What is known of a model, by Ollama's API"),
}
_GETS = {
    "/v1/models": ("The names of models, which carry how an answer is found", "application/json"),
    "/v1/status": ("The mesh as this node sees it", "application/json"),
    "/api/tags": ("The names of models, by Ollama's API", "application/json"),
    "/api/ps": ("The model that is loaded, by Ollama's API", "application/json"),
    "/api/version": ("Versions of Ollama's API and of this node", "application/json"),
    "/health": ("Whether the node serves", "application/json"),
    "/metrics": ("Prometheus' text format", "text/plain"),
}
_NAMED = {
    "/v1/models/{name}": ("model", "One name of a model", "No such model"),
    "/v1/topics/{name}": ("topic", "A conversation that this node holds", "No such topic"),
}
_STORED = {
    "GET /v1/responses/{id}": ("get", "response", "A response that is remembered"),
    "DELETE /v1/responses/{id}": ("delete", "delete_response", "Forget a response"),
    "GET /v1/responses/{id}/input_items": ("get", "response_input_items", "What it was the answer to"),
}
_PAGE = [
    {"name": "order", "in": "query", "schema": {"enum": ["asc", "desc"]}},
    {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 100}},
    {"name": "after", "in": "query", "schema": {"type": "string"}},
]
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


@cache
def document(version: str) -> bytes:
    """The whole description; made when it is first asked for, since a node would start later by what that takes."""
    schemas, components = msgspec.json.schema_components(
        [kind for kind, _ in _POSTS.values()], ref_template="#/components/schemas/{name}"
    )
    paths: dict[str, Any] = {}
    for (path, (_, summary)), asked in zip(_POSTS.items(), schemas, strict=True):
        is_ollama = path.startswith("/api/")
        failure = _ollama_error if is_ollama else _anthropic_error if "/messages" in path else _openai_error
        body = {"application/json": {"schema": asked}}
        events = "application/x-ndjson" if is_ollama else "text/event-stream"
        answers = {"200": _answer("The answer, or its events", "application/json", events)}
        for code, why in (
            ("400", "The request cannot be served as asked"),
            ("404", "No such model, topic or response"),
            ("429", "Every sequence is in use and the queue is full"),
            ("500", "The model failed"),
            ("503", "The node stops, or too few candidates finished"),
        ):
            answers[code] = failure(why)
        paths[path] = {
            "post": {
                "summary": summary,
                "operationId": path.removeprefix("/v1").strip("/").replace("/", "_"),
                "requestBody": {"required": True, "content": body},
                "responses": answers
                | {"401": _openai_error("An API key is wanted"), "403": _openai_error("Another site's page")},
            }
        }
    for path, (summary, kind_of_text) in _GETS.items():
        paths[path] = {
            "get": {
                "summary": summary,
                "operationId": path.removeprefix("/v1").strip("/").replace("/", "_"),
                "responses": {
                    "200": _answer(summary, kind_of_text),
                    "401": _openai_error("An API key is wanted"),
                    "403": _openai_error("Another site's page"),
                },
            }
        }
    paths["/health"]["get"]["responses"]["503"] = _answer("It stops", "application/json")
    for path, (name, summary, missing) in _NAMED.items():
        paths[path] = {
            "get": {
                "summary": summary,
                "operationId": name,
                "parameters": [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}],
                "responses": {
                    "200": _answer(summary, "application/json"),
                    "400": _openai_error("No name can be so"),
                    "401": _openai_error("An API key is wanted"),
                    "403": _openai_error("Another site's page"),
                    "404": _openai_error(missing),
                },
            }
        }
    paths["/v1/topics/{name}"]["delete"] = paths["/v1/topics/{name}"]["get"] | {
        "summary": "Forget a conversation, on every node",
        "operationId": "forget_topic",
    }
    for path, (verb, name, summary) in _STORED.items():
        operation: dict[str, Any] = {
            "summary": summary,
            "operationId": name,
            "parameters": [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}],
            "responses": {
                "200": _answer(summary, "application/json"),
                "401": _openai_error("An API key is wanted"),
                "403": _openai_error("Another site's page"),
                "404": _openai_error("It is not remembered"),
            },
        }
        if name == "response_input_items":
            operation["parameters"] = [*operation["parameters"], *_PAGE]
            operation["responses"] = {**operation["responses"], "400": _openai_error("A parameter is out of range")}
        paths.setdefault(path.partition(" ")[2], {})[verb] = operation
    made = msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "Conclave",
                "version": version,
                "description": "OpenAI's, Ollama's and Anthropic's APIs over a swarm of local models that vote.",
            },
            "paths": paths,
            "components": {
                "schemas": components | {"Error": _ERROR},
                "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            },
            "security": [{}, {"key": []}],
        }
    )
    # Where two APIs have a name, msgspec calls each by its module.
    for module, short in ((b"ollama.schema.", b"Ollama."), (b"anthropic.schema.", b"Anthropic."), (b"schema.", b"")):
        made = made.replace(b"node.api.http." + module, short)
    return made


def _answer(description: str, *kinds: str) -> dict[str, Any]:
    return {"description": description, "content": {kind: {"schema": {}} for kind in kinds}}


def _ollama_error(description: str) -> dict[str, Any]:
    error = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
    return {"description": description, "content": {"application/json": {"schema": error}}}


def _anthropic_error(description: str) -> dict[str, Any]:
    said = {"type": "object", "required": ["type", "message"], "properties": {"message": {"type": "string"}}}
    error = {"type": "object", "required": ["type", "error"], "properties": {"error": said}}
    return {"description": description, "content": {"application/json": {"schema": error}}}


def _openai_error(description: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {"description": description, "content": content}
