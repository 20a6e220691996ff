"""The health checks of compose.yaml: `health.py http URL` or `health.py grpc HOST:PORT`; status 0 is healthy."""

from __future__ import annotations

import sys
import urllib.error
import urllib.request

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

TIMEOUT_S = 3.0


def answers_http(url: str) -> bool:
    """True where a GET of `url` has a status below 400."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S):  # noqa: S310 - the URL is that of compose.yaml
            return True
    except urllib.error.URLError:
        return False


def serves_grpc(address: str) -> bool:
    """True where the server at `address` says SERVING of itself (gRPC health checking protocol)."""
    with grpc.insecure_channel(address) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S
            )
        except grpc.RpcError:
            return False
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


if __name__ == "__main__":
    kind, target = sys.argv[1:]
    is_healthy = {"http": answers_http, "grpc": serves_grpc}[kind](target)
    raise SystemExit(not is_healthy)
