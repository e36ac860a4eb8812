"""The walk through a graph where every node is in this process; what recorded graphs do is told in tests/conformance."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving import routing, wire
from serving.engine import Child, Engine, Split
from serving.errors import BadFeedback, BadRoute, NodeFailed, NodeUnreachable, ServingError
from serving.graph import GraphNode, Parameter
from serving.messages import Message
from serving.nodes import Call


class Tracer:
    """A node that wraps what it is asked into its name, notes the call, and fails where it is told to."""

    immediate = False

    def __init__(self, name: str, trace: list[str], *, route: str = "[0]", fails: Exception | None = None, delay: float = 0.0):
        self.name = name
        self.is_ready = True
        self._trace = trace
        self._route = route
        self._fails = fails
        self._delay = delay

    async def _answer(self, method: str, message: Message) -> Message:
        self._trace.append(f"{self.name}.{method}")
        await asyncio.sleep(self._delay)
        if self._fails:
            raise self._fails
        return Message(b'{"%b":%b}' % (self.name.encode(), message.body))

    async def predict(self, message: Message, call: Call) -> Message:
        return await self._answer("predict", message)

    async def transform_input(self, message: Message, call: Call) -> Message:
        return await self._answer("transform_input", message)

    async def transform_output(self, message: Message, call: Call) -> Message:
        return await self._answer("transform_output", message)

    async def send_feedback(self, message: Message, call: Call) -> Message:
        return await self._answer("send_feedback", message)

    async def route(self, message: Message, call: Call) -> Message:
        await self._answer("route", message)
        return Message(self._route.encode())

    async def aggregate(self, messages: Sequence[Message], call: Call) -> Message:
        return await self._answer("aggregate", Message(b"[%b]" % b",".join(each.body for each in messages)))

    async def metadata(self, call: Call) -> Message:
        return Message(json.dumps({"name": self.name, "inputs": [self.name], "outputs": [self.name]}).encode())

    async def status(self, call: Call) -> Message:
        return await self._answer("status", Message(b"1"))

    async def ready(self) -> bool:
        self._trace.append(f"{self.name}.ready")
        return self.is_ready


def node(kind: str, name: str, *children: GraphNode, **fields: Any) -> GraphNode:
    return GraphNode(name, kind, children=children, key=name, **fields)


M0, M1 = node("MODEL", "m0"), node("MODEL", "m1")
ROUTED = node("OUTPUT_TRANSFORMER", "out", node("ROUTER", "router", M0, M1))


class Bench:
    """An engine over tracers. `special` replaces some of them."""

    def __init__(self, root: GraphNode, splits: Mapping[str, Split] | None = None, *, inject: bool = False, **special: Any):
        self.trace: list[str] = []
        self.nodes = {unit.key: Tracer(unit.name, self.trace, **special.get(unit.name, {})) for unit in root.walk()}
        self.engine = Engine(root, self.nodes, splits or {}, inject_routing=inject)

    def predict(self, body: str = "1", call: Call | None = None) -> str:
        return asyncio.run(self.engine.predict(Message(body.encode()), call or Call())).body.decode()

    def feedback(self, routing: Mapping[str, int]) -> str:
        body = json.dumps({"response": {"meta": {"routing": dict(routing)}}})
        return asyncio.run(self.engine.feedback(Message(body.encode()), Call())).body.decode()

    def ready(self) -> bool:
        return asyncio.run(self.engine.ready())


class Halves:
    """A split that asks both children in turn, and has a finisher sign the final answer."""

    immediate = True

    def __init__(self) -> None:
        self.seen: list[list[str]] = []

    async def predict(self, message: Message, call: Call, children: Sequence[Child]) -> Message:
        self.seen.append([child.name for child in children])
        answers = [(await child.predict(message, call)).body for child in children]
        call.finishers.append(lambda final: Message(final.body + b"!"))
        return Message(b"[%b]" % b",".join(answers))


def test_a_split_takes_the_place_of_route_and_children_and_its_finisher_sees_the_final_answer() -> None:
    halves = Halves()
    bench = Bench(ROUTED, {"router": halves})
    assert bench.predict() == '{"out":[{"m0":1},{"m1":1}]}!'
    assert bench.trace == ["m0.predict", "m1.predict", "out.transform_output"]
    assert halves.seen == [["m0", "m1"]]


def test_a_split_s_child_is_a_whole_subtree() -> None:
    below = node("TRANSFORMER", "in", node("COMBINER", "all", M0, M1))
    bench = Bench(node("ROUTER", "router", below), {"router": Halves()})
    assert bench.predict() == '[{"all":[{"m0":{"in":1}},{"m1":{"in":1}}]}]!'


class Prompt(Tracer):
    immediate = True


@pytest.mark.parametrize(
    ("root", "waiting", "immediate"),
    [
        (M0, (), True),
        (M0, ("m0",), False),
        (node("OUTPUT_TRANSFORMER", "out", M0), (), True),
        (node("OUTPUT_TRANSFORMER", "out", M0), ("m0",), False),
        (node("COMBINER", "all", M0, M1), (), False),
        (node("ROUTER", "split", M0, M1), (), True),
        (node("ROUTER", "split", M0, M1), ("m1",), False),
        (node("ROUTER", "split", M0, node("COMBINER", "all", M0, M1)), (), False),
    ],
)
def test_a_subtree_never_waits_if_none_of_its_nodes_does_and_no_tasks_are_made(
    root: GraphNode, waiting: tuple[str, ...], immediate: bool
) -> None:
    class Looks(Halves):
        async def predict(self, message: Message, call: Call, children: Sequence[Child]) -> Message:
            assert children[0].immediate is immediate
            return await super().predict(message, call, children)

    outer = Looks()
    nodes = {unit.key: (Tracer if unit.name in waiting else Prompt)(unit.name, []) for unit in root.walk()}
    engine = Engine(node("ROUTER", "outer", root), nodes, {"split": Halves(), "outer": outer})
    asyncio.run(engine.predict(Message(b"1"), Call()))
    assert outer.seen


def test_a_failure_below_a_split_reaches_the_split_as_it_is() -> None:
    failure = NodeFailed("m1", 503, b"{}", None)

    class Falls:
        immediate = True

        async def predict(self, message: Message, call: Call, children: Sequence[Child]) -> Message:
            with pytest.raises(NodeFailed) as caught:
                await children[1].predict(message, call)
            assert caught.value is failure
            return await children[0].predict(message, call)

    bench = Bench(node("ROUTER", "router", M0, M1), {"router": Falls()}, m1={"fails": failure})
    assert bench.predict() == '{"m0":1}'


def test_finishers_apply_in_order_and_not_to_failures() -> None:
    call = Call(finishers=[lambda message: Message(message.body + b"a"), lambda message: Message(message.body + b"b")])
    assert Bench(M0).predict(call=call) == '{"m0":1}ab'
    with pytest.raises(NodeUnreachable):
        Bench(M0, m0={"fails": NodeUnreachable("gone")}).predict(call=call)


def test_feedback_goes_to_the_child_in_the_routing_and_to_a_router_only_if_it_is_a_node() -> None:
    stock, split = Bench(ROUTED), Bench(ROUTED, {"router": Halves()})
    assert "send_feedback" not in stock.feedback({"router": 1})
    split.feedback({"router": 1})
    assert stock.trace == ["m1.send_feedback", "router.send_feedback"]
    assert split.trace == ["m1.send_feedback"]
    split.trace.clear()
    split.feedback({})
    assert sorted(split.trace) == ["m0.send_feedback", "m1.send_feedback"]


def test_feedback_to_a_child_that_is_not_there_is_the_client_s_fault() -> None:
    with pytest.raises(BadFeedback, match=r"response\.meta\.routing\.router: 2; 0 to 1 is expected"):
        Bench(ROUTED).feedback({"router": 2})


def test_below_a_split_only_the_first_child_must_be_ready() -> None:
    bench = Bench(ROUTED, {"router": Halves()})
    bench.nodes["m1"].is_ready = bench.nodes["router"].is_ready = False
    assert bench.ready()
    assert bench.trace == ["m0.ready", "out.ready"]
    bench.nodes["m0"].is_ready = False
    assert not bench.ready()


def test_elsewhere_every_node_must_be_ready_children_first_until_one_is_not() -> None:
    bench = Bench(ROUTED)
    assert bench.ready()
    assert bench.trace == ["m0.ready", "m1.ready", "router.ready", "out.ready"]
    bench.trace.clear()
    bench.nodes["m1"].is_ready = False
    assert not bench.ready()
    assert bench.trace == ["m0.ready", "m1.ready"]


def test_all_children_have_ended_before_the_first_one_s_failure_is_told() -> None:
    slow = {"fails": NodeFailed("m0", 400, b"first", None), "delay": 0.05}
    bench = Bench(node("COMBINER", "all", M0, M1), m0=slow, m1={"fails": NodeFailed("m1", 500, b"second", None)})
    with pytest.raises(NodeFailed) as caught:
        bench.predict()
    assert caught.value.node_body == b"first"
    assert bench.trace == ["m0.predict", "m1.predict"]


def test_an_unexpected_exception_of_a_child_isn_t_swallowed() -> None:
    with pytest.raises(ZeroDivisionError):
        Bench(node("COMBINER", "all", M0, M1), m1={"fails": ZeroDivisionError()}).predict()


def test_a_node_that_runs_nowhere_fails_when_called_and_only_then() -> None:
    engine = Engine(node("ROUTER", "router", M0, M1), {"m1": Tracer("m1", []), "router": Tracer("router", [], route="[1]")})
    assert asyncio.run(engine.predict(Message(b"1"), Call())).body == b'{"m1":1}'
    assert asyncio.run(engine.ready())
    alone = Engine(M0, {})
    with pytest.raises(NodeUnreachable, match="node m0: it has no endpoint"):
        asyncio.run(alone.predict(Message(b"1"), Call()))
    with pytest.raises(ServingError, match="node m0: it has no endpoint"):
        asyncio.run(alone.status("m0", Call()))


def test_nodes_of_one_name_are_told_apart_by_key() -> None:
    twice = GraphNode("m", "MODEL", key="m", children=(GraphNode("m", "MODEL", key="m#2"),))
    trace: list[str] = []
    engine = Engine(twice, {"m": Tracer("first", trace), "m#2": Tracer("second", trace)})
    assert asyncio.run(engine.predict(Message(b"1"), Call())).body == b'{"second":{"first":1}}'


def test_metadata_describes_every_node_and_the_ends_of_the_graph() -> None:
    described = asyncio.run(Bench(ROUTED).engine.metadata(Call()))
    assert set(described["models"]) == {"out", "router", "m0", "m1"}
    assert (described["graphinputs"], described["graphoutputs"]) == (["m0"], ["out"])


def test_an_unknown_node_is_named_with_those_there_are() -> None:
    with pytest.raises(ServingError, match="no node 'nope' in the graph; there is out, router, m0, m1"):
        asyncio.run(Bench(ROUTED).engine.node_metadata("nope", Call()))


def test_a_random_split_keeps_its_ratio() -> None:
    ratio = {"ratioA": Parameter("0.25", "FLOAT", 0.25)}
    bench = Bench(node("", "ab", M0, M1, implementation="RANDOM_ABTEST", parameters=ratio))
    first = sum(bench.predict() == '{"m0":1}' for _ in range(2000))
    assert 380 < first < 620  # 500 expected; six standard deviations of 19


def test_injected_routing_shows_the_way_taken_and_a_failure_stays_one() -> None:
    routed = {"route": "[1]"}
    call = Call()
    bench = Bench(ROUTED, inject=True, router=routed)
    assert bench.predict('{"meta":{}}', call) == '{"out":{"m1":{"meta":{}}}}'
    assert call.routing == {"m1": -1, "router": 1, "out": -1}
    broken = Bench(ROUTED, inject=True, router=routed, out={"fails": NodeFailed("out", 503, b'{"meta":{}}', None)})
    with pytest.raises(NodeFailed) as caught:
        broken.predict()
    assert caught.value.status == 503
    assert json.loads(caught.value.node_body) == {"meta": {"routing": call.routing}}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=5), below, max_size=3),
    max_leaves=8,
)
ANSWERS = JSON | st.builds(lambda name, value: {"data": {name: value}}, st.sampled_from(["ndarray", "tensor"]), JSON)


@given(ANSWERS, st.integers(1, 4))
def test_no_answer_of_a_router_names_a_child_that_is_not_there(answer: Any, children: int) -> None:
    try:
        index = routing.chosen(Message(json.dumps(answer).encode()), "router", children)
    except BadRoute as error:
        assert error.status == 500
    else:
        assert -2 <= index < children


@given(st.binary(max_size=40))
def test_bytes_that_are_no_json_are_a_bad_route_and_feedback_for_all(body: bytes) -> None:
    if not wire.is_json(body) and body.strip()[:1] != b"{":
        with pytest.raises(BadRoute):
            routing.chosen(Message(body), "router", 2)
        assert routing.named(Message(body), "router", 2) == routing.ALL


@given(st.integers(-3, 5), st.integers(1, 4), JSON)
def test_feedback_counts_only_if_the_whole_message_fits_the_schema(index: int, children: int, other: Any) -> None:
    feedback = {"response": {"meta": {"routing": {"router": index}}}}
    if -1 <= index < children:
        assert routing.named(Message(json.dumps(feedback).encode()), "router", children) == index
    else:
        with pytest.raises(BadFeedback):
            routing.named(Message(json.dumps(feedback).encode()), "router", children)
    unknown = Message(json.dumps({**feedback, "other": other}).encode())
    assert routing.named(unknown, "router", children) == routing.ALL


@given(JSON)
def test_escaping_and_injection_change_no_value_but_the_routing(value: Any) -> None:
    body = json.dumps({"meta": {"a": 1}, "value": value}, ensure_ascii=False).encode()
    assert json.loads(wire.escape(body)) == json.loads(body)
    injected = json.loads(routing.inject(Message(body), {"m": -1}).body)
    assert injected["meta"] == {"a": 1, "routing": {"m": -1}}
    assert as_doubles(injected["value"]) == as_doubles(value)


def as_doubles(value: Any) -> Any:
    """Every number as the double that a JSON reader without integers makes of it."""
    if isinstance(value, dict):
        return {key: as_doubles(each) for key, each in value.items()}
    if isinstance(value, list):
        return [as_doubles(each) for each in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


@given(st.text(alphabet='[]{}",:0123456789.eE+-truefalsn \\u\n', max_size=12))
def test_what_counts_as_json_is_what_the_standard_says(text: str) -> None:
    def no_constant(name: str) -> None:
        raise ValueError(name)

    try:
        value = json.loads(text, parse_constant=no_constant)
    except ValueError:
        assert not wire.is_json(text.encode())
    else:
        # Numbers beyond a double, which Python reads as infinite, are refused.
        assert wire.is_json(text.encode()) or "Infinity" in json.dumps(value)
