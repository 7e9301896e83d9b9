"""The HTTP server on Ray Serve. In: models and how many replicas; out: an application for `ray.serve.run`, or for the command `serve run`.

Each replica is a process with engines of its own, behind the same ASGI app as everywhere. Ray's proxy sends a request to the replica with
fewer of them. A stream's state goes back to its client with each answer, so that any replica can go on with it.
"""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.applications import Starlette

from ...extras import needed
from ..http import Limits
from ..http import application as http_application
from .served import Served, checked, made

_SPARE = 10.0  # seconds of shutting down beyond the longest request


class Replica:
    """One process of the deployment.

    Args:
        served, options: as `application` checked them.
        http: arguments of `fusedrnn.serve.http.application`.
        session_key: as `fusedrnn.serve.http.face` has it.
    """

    def __init__(
        self, served: Sequence[Served], options: Mapping[str, Any], http: Mapping[str, Any], session_key: bytes | None
    ) -> None:  # fmt: skip
        context = needed("ray.serve", "ray").get_replica_context()
        self._faces = [made(each, session_key=session_key, **options) for each in served]
        self._http, self._name = http, context.replica_id.unique_id
        gc.collect()
        gc.freeze()  # going through all of torch stops every request for 0.15 s

    def __serve_build_asgi_app__(self) -> Starlette:
        """Called by Ray where the replica's event loop runs; its lifespan starts the engines, and drains them at the end."""
        return http_application(*self._faces, replica=self._name, **self._http)

    async def check_health(self) -> None:
        """Called by Ray, which replaces a replica that is not well.

        Raises:
            RuntimeError: an engine has stopped.
        """
        stopped = [face.name for face in self._faces if not face.engine.alive]
        if stopped:
            raise RuntimeError(f"the engine of {', '.join(stopped)} has stopped: this replica must be replaced")


def application(
    *served: Served,
    replicas: int | tuple[int, int] = 2,
    autoscaling: Mapping[str, Any] | None = None,
    cpus: float = 1.0,
    slots: int = 64,
    queue: int = 1024,
    limits: Limits | None = None,
    token: str | None = None,
    hosts: Sequence[str] = (),
    session_key: bytes | None = None,
    name: str = "fusedrnn",
    **engine: Any,
) -> Any:
    """Models as a Ray Serve application.

    Args:
        served: "g2p", "chars", or functions that make a `Model`, an `Engine` or an `http.Face`. They are called in each replica.
        replicas: how many; a pair: the fewest and the most, by the number of requests that are there.
        autoscaling: further fields of Ray's AutoscalingConfig, for a pair of replicas. ``target_ongoing_requests``, the requests that run
            and wait for each replica, is `slots` if not given: replicas are added where queues form.
        cpus: of a replica; threads of its launches are as many, at least 1, unless `threads` is given.
        slots, queue: of each model in each replica.
        limits, token, hosts: as `fusedrnn.serve.http.application` has them.
        session_key: at least 16 bytes; states of streams are sealed with it. None: any client can make up a state of its own stream.
        name: of the deployment.
        engine: further arguments of `Engine`.

    Returns:
        An application for `ray.serve.run`. A replica that is stopped finishes what it has accepted: Ray waits for its requests, as long as
        the longest may take.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        ValueError, TypeError: an argument is not as it should be.
    """
    serve = needed("ray.serve", "ray")
    if not served:
        raise ValueError("served must have one model at least, such as 'g2p'")
    if token == "":
        raise ValueError("token must not be empty: leave it out, or give one")
    if session_key is not None and len(session_key) < 16:
        raise ValueError(f"session_key must have 16 bytes or more, got {len(session_key)}")
    limits = limits or Limits()
    options = {"slots": slots, "queue": queue, "threads": max(1, math.floor(cpus)), **engine}
    deployment = serve.deployment(
        serve.ingress()(Replica),
        name=name,
        ray_actor_options={"num_cpus": cpus},
        max_ongoing_requests=(slots + queue) * len(served) + slots,  # beyond the queue: those that are told that it is full
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=limits.deadline + limits.stall + _SPARE,
        health_check_period_s=5.0,
        health_check_timeout_s=15.0,
        **_scaled(replicas, autoscaling, slots),
    )
    http = {"limits": limits, "token": token, "hosts": tuple(hosts)}
    return deployment.bind([checked(each) for each in served], options, http, session_key)


def _scaled(replicas: int | tuple[int, int], autoscaling: Mapping[str, Any] | None, slots: int) -> dict[str, Any]:
    if isinstance(replicas, int):
        if replicas < 1 or autoscaling is not None:
            raise ValueError(f"replicas must be at least 1, and a pair (fewest, most) to be scaled; got {replicas}")
        return {"num_replicas": replicas}
    fewest, most = replicas
    if not 0 <= fewest <= most or not most:
        raise ValueError(f"replicas must be a pair (fewest, most) that rises, got {replicas}")
    return {
        "autoscaling_config": {"min_replicas": fewest, "max_replicas": most, "target_ongoing_requests": slots, **(autoscaling or {})}
    }  # fmt: skip


def app(arguments: dict[str, str]) -> Any:
    """For Ray's command: ``serve run fusedrnn.serve.ray:app models=g2p,chars replicas=2``.

    Args:
        arguments: ``models``, with commas between them (default g2p); ``replicas``, a number, or the fewest and the most as ``1-4``
            (default 2); ``cpus``, ``slots``, ``queue``, ``deadline``, ``hosts`` (with commas) as `application` and `Limits` have them.

    The token is that of the environment variable FUSEDRNN_TOKEN where the command runs.

    Raises:
        ValueError: an argument is not known, or not as it should be.
    """
    given = dict(arguments)
    models, replicas = given.pop("models", "g2p").split(","), given.pop("replicas", "2")
    fewest, dash, most = replicas.partition("-")
    hosts, deadline = given.pop("hosts", ""), _number("deadline", given.pop("deadline", str(Limits.deadline)), float)
    numbers: dict[str, Any] = {
        name: _number(name, given.pop(name), kind) for name, kind in (("cpus", float), ("slots", int), ("queue", int)) if name in given
    }
    if given:
        raise ValueError(f"{min(given)!r} is not known; known: models, replicas, cpus, slots, queue, deadline, hosts")
    return application(
        *models,
        replicas=(_number("replicas", fewest, int), _number("replicas", most, int)) if dash else _number("replicas", fewest, int),
        limits=Limits(deadline=deadline),
        token=os.environ.get("FUSEDRNN_TOKEN"),
        hosts=[each for each in hosts.split(",") if each],
        **numbers,
    )


def _number(name: str, text: str, kind: type[int] | type[float]) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{name} must be {'a whole number' if kind is int else 'a number'}, got {text!r}") from None
