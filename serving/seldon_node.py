"""A node that is a plain Python class with Seldon's documented methods, run in the engine's own process.

Invariant: the class is called, and its answer made, as `seldon-core-microservice` does, one call at a time; an exception of
the class is the node's failure with the status and body that the wrapper gives it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import orjson

from serving import wire
from serving.errors import BadRequest, NodeFailed
from serving.messages import Message
from serving.nodes import Call, NodeObserver
from serving.seldon_payload import Misuse, Payload, Result, feedback_parts, measured, request_parts, response, takes


class SeldonNode:
    """Calls a component by its `*_raw` method where it has one, else by the plain one; a method that it lacks passes data on.

    `image` is the container's, for meta.requestPath. The component's `load` is called once, before the first request.
    """

    immediate = True

    def __init__(self, name: str, component: object, observer: NodeObserver, *, image: str = "") -> None:
        self.name = name
        self._component = component
        self._observer = observer
        self._path = {name: image} if image else {}
        self._with_meta = {
            method: takes(getattr(component, method, None), "meta")
            for method in ("predict", "transform_input", "transform_output", "route")
        }
        load = getattr(component, "load", None)
        if load is not None:
            load()

    async def predict(self, message: Message, call: Call) -> Message:
        return self._answer("predict", "predict", message, self._plain("predict", "predict", []))

    async def transform_input(self, message: Message, call: Call) -> Message:
        return self._answer("transform-input", "transform_input", message, self._plain("transform_input", "inputtransform"))

    async def transform_output(self, message: Message, call: Call) -> Message:
        return self._answer("transform-output", "transform_output", message, self._plain("transform_output", "outputtransform"))

    async def route(self, message: Message, call: Call) -> Message:
        return self._answer("route", "route", message, self._route)

    async def aggregate(self, messages: Sequence[Message], call: Call) -> Message:
        parts = b",".join(message.body for message in messages)
        return self._answer("aggregate", "aggregate", Message(b'{"seldonMessages":[' + parts + b"]}"), self._aggregate)

    async def send_feedback(self, message: Message, call: Call) -> Message:
        return self._answer("send-feedback", "send_feedback", message, self._feedback)

    async def metadata(self, call: Call) -> Message:
        """Return what the class says of itself by `init_metadata`."""
        describe = getattr(self._component, "init_metadata", dict)
        return Message(orjson.dumps({"name": self.name, "platform": "", **describe()}))

    async def status(self, call: Call) -> Message:
        return self._answer("health/status", "health_status", None, self._health)

    async def ready(self) -> bool:
        return True

    def _answer(self, method: str, name: str, message: Message | None, plain: Callable[[Any], Payload]) -> Message:
        """Ask the class. Raises NodeFailed with the wrapper's status and body, BadRequest if the message is no JSON."""
        request = [] if message is None else [_parsed(message)]
        started = time.perf_counter()
        status = 500
        try:
            raw = getattr(self._component, f"{name}_raw", None)
            answer: Any = plain(*(request or [{}])) if raw is None else raw(*request)
            body = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
            status = _status(answer) if method == "predict" else 200
            if status != 200:
                raise NodeFailed(self.name, status, body, "application/json")
        except NodeFailed:
            raise
        except Exception as error:
            status, reason = (error.status, error.reason) if isinstance(error, Misuse) else (500, "MICROSERVICE_INTERNAL_ERROR")
            body = orjson.dumps({"status": {"status": 1, "info": str(error), "code": -1, "reason": reason}})
            raise NodeFailed(self.name, status, body, "application/json") from error
        finally:
            self._observer.node(self.name, method, status, time.perf_counter() - started)
        return Message(body)

    def _plain(self, name: str, metric: str, missing: Any = None) -> Callable[[Any], Payload]:
        """Return what calls predict or a transformation; a class without it answers `missing`, None for its input."""
        method = getattr(self._component, name, None)

        def ask(request: Payload) -> Payload:
            features, names, meta = request_parts(request)
            if method is None:
                result = Result.of(features if missing is None else missing)
            else:
                result = Result.of(method(features, names, **({"meta": meta} if self._with_meta[name] else {})))
            return response(self._component, request, measured(self._component, result, metric), meta, self._path)

        return ask

    def _route(self, request: Payload) -> Payload:
        features, names, meta = request_parts(request)
        method = getattr(self._component, "route", None)
        if method is None:
            raise Misuse("Route not defined")
        result = Result.of(method(features, names, **({"meta": meta} if self._with_meta["route"] else {})))
        if not isinstance(result.data, int):
            raise Misuse(f"Routing response must be int but got {result.data}")
        result = measured(self._component, result._replace(data=[[result.data]]), "router")
        return response(self._component, request, result, None, self._path)

    def _aggregate(self, request: Payload) -> Payload:
        messages = request["seldonMessages"]
        parts = [request_parts(message) for message in messages]
        method = getattr(self._component, "aggregate", None)
        if method is None:
            raise Misuse("Aggregate not defined")
        result = Result.of(method([part.features for part in parts], [part.names for part in parts]))
        metas = [part.meta or {} for part in parts]
        merged = {
            "tags": {name: value for meta in metas for name, value in meta.get("tags", {}).items()},
            "requestPath": {name: value for meta in metas for name, value in meta.get("requestPath", {}).items()},
            "metrics": [each for meta in metas for each in meta.get("metrics", [])],
        }
        return response(self._component, messages[0], measured(self._component, result, "aggregate"), merged, self._path)

    def _feedback(self, feedback: Payload) -> Payload:
        request = feedback.get("request") or {}
        features, names, _ = feedback_parts(request)
        truth = feedback_parts(feedback.get("truth")).features
        routing = ((feedback.get("response") or {}).get("meta") or {}).get("routing") or {}
        method = getattr(self._component, "send_feedback", None)
        reward = float(feedback.get("reward") or 0)
        returned = None if method is None else method(features, names, reward, truth, routing=routing.get(self.name))
        result = measured(self._component, Result.of(returned), "feedback")
        if result.data is None:
            result = result._replace(data=[])
        return response(self._component, request, result, None, self._path)

    def _health(self, request: Payload) -> Payload:
        method = getattr(self._component, "health_status", None)
        result = Result.of("healthy" if method is None else method())
        return response(self._component, {}, measured(self._component, result, "health"), None, self._path)


def _parsed(message: Message) -> Any:
    try:
        return wire.parse(message.body)
    except ValueError as error:
        raise BadRequest(f"the body is not JSON: {error}") from None


def _status(answer: Any) -> int:
    """Return the HTTP status that a `predict_raw` may choose in its answer."""
    status = answer.get("status") if type(answer) is dict else None
    code = status.get("code") if type(status) is dict else None
    return code if type(code) is int else 200
