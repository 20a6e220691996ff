"""The named errors of Baton, one root, each with the HTTP status and the code that a client sees.

Errors are raised where the fault is found and translated once at each boundary: to a gRPC status in
`baton.rpc`, to OpenAI's error shape in `baton.router.api.errors`.
"""

from __future__ import annotations

from typing import ClassVar


class BatonError(Exception):
    """Root of all errors that Baton raises on purpose.

    `message` is fit for a client's eyes; `field` names the offending request field or configuration key.
    """

    code: ClassVar[str] = "internal_error"
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field


class InvalidRequest(BatonError):
    """The request can never be served as it stands; the message names field, value and limit."""

    code = "invalid_request"
    http_status = 400


class Unauthorized(BatonError):
    """No API key or a wrong one; on a worker's port, no cluster secret or a wrong one."""

    code = "unauthorized"
    http_status = 401


class ModelNotFound(BatonError):
    """The request names a model that this fleet does not serve."""

    code = "model_not_found"
    http_status = 404


class QueueTimeout(BatonError):
    """The request waited for a place longer than the queue deadline."""

    code = "queue_timeout"
    http_status = 408


class RequestTooLarge(BatonError):
    """The body exceeds the size limit."""

    code = "request_too_large"
    http_status = 413


class Overloaded(BatonError):
    """A bounded queue is full; retry after `retry_after_s` seconds."""

    code = "overloaded"
    http_status = 429

    def __init__(self, message: str, *, field: str | None = None, retry_after_s: float = 1.0) -> None:
        super().__init__(message, field=field)
        self.retry_after_s = retry_after_s


class SloUnattainable(Overloaded):
    """The request's TTFT objective cannot be met any more, and the router is to refuse such requests."""

    code = "slo_unattainable"


class Cancelled(BatonError):
    """The client went away, or the other side cancelled this leg."""

    code = "cancelled"
    http_status = 499


class Unavailable(BatonError):
    """Nothing can serve the request now."""

    code = "unavailable"
    http_status = 503


class DeadlineExceeded(BatonError):
    """The request's deadline passed before its end."""

    code = "deadline_exceeded"
    http_status = 504


class WorkerFailed(BatonError):
    """A worker died, hung or reported a fault of its own in the middle of a leg."""

    code = "worker_failed"
    http_status = 500


class HandoffFailed(BatonError):
    """The KV blocks did not arrive: lost peer, refused ticket, checksum, expiry."""

    code = "handoff_failed"
    http_status = 500


class DuplicateWorker(BatonError):
    """Another process that is alive has the worker's id."""

    code = "duplicate_worker"
    http_status = 409


class ConfigError(BatonError):
    """A configuration key is unknown or its value malformed; the process stops."""

    code = "config_error"


class ModelFolderError(ConfigError):
    """A model folder cannot be served; the message names the file and, where there is one, the tensor."""

    code = "model_folder_error"


ERRORS_BY_CODE: dict[str, type[BatonError]] = {
    error.code: error
    for error in (
        BatonError,
        InvalidRequest,
        Unauthorized,
        ModelNotFound,
        QueueTimeout,
        RequestTooLarge,
        Overloaded,
        SloUnattainable,
        Cancelled,
        Unavailable,
        DeadlineExceeded,
        WorkerFailed,
        HandoffFailed,
        DuplicateWorker,
        ConfigError,
        ModelFolderError,
    )
}
