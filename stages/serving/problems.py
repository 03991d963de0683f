"""What goes wrong with a request, as OpenAI's error object: message, type, param, code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

INVALID, SERVER, BUSY = "invalid_request_error", "server_error", "rate_limit_error"


class Problem(Exception):
    """Answer a request with an error object; the client library maps `status` to its exception."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = (
            {} if retry_after_seconds is None else {"retry-after": f"{retry_after_seconds}"}
        )

    def body(self) -> dict[str, Any]:
        """Return the error object; clients require all four of its keys."""
        kind = SERVER if self.status >= 500 else BUSY if self.status == 429 else INVALID
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    def response(self) -> JSONResponse:
        """Return the whole HTTP answer."""
        return JSONResponse(self.body(), self.status, self.headers)


def internal() -> Problem:
    """Return what a client is told of a failure of ours: nothing about our inside."""
    return Problem(
        500, "the server failed on this request; its log says why", code="internal_error"
    )


def unavailable() -> Problem:
    """Return what a client is told while nobody computes: not yet, no more, or not any more."""
    return Problem(
        503, "the server has stopped answering", code="unavailable", retry_after_seconds=5
    )


def from_validation(errors: Sequence[Mapping[str, Any]]) -> Problem:
    """Return the first of pydantic's findings, with the field's full name."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return Problem(400, f"the body is not JSON: {first['ctx']['error']}", code="invalid_json")
    path = [str(part) for part in first["loc"] if part != "body"]
    param = first.get("ctx", {}).get("param") or ".".join(path) or None
    if param is None:
        return Problem(400, "the body must be a JSON object, sent as application/json")
    return Problem(400, f"{param}: {first['msg']}", param=param, code="invalid_value")


def install(app: FastAPI) -> None:
    """Make every failure of `app`, its router's own included, an error object."""

    async def problem(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, Problem)
        return error.response()

    async def validation(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return from_validation(error.errors()).response()

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        message = f"{request.method} {request.url.path}: {error.detail}"
        answer = Problem(error.status_code, message).response()
        answer.headers.update(error.headers or {})
        return answer

    async def unexpected(_: Request, __: Exception) -> JSONResponse:
        return internal().response()

    app.add_exception_handler(Problem, problem)
    app.add_exception_handler(RequestValidationError, validation)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, unexpected)
