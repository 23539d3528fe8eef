"""`ask` against canned answers: what is sent, what is printed where, and how failures look."""

import io
import itertools
import json
import math
import re
import socket
from types import SimpleNamespace

import grpc
import pytest
from fakenode import THERE, FakeNode, Run, nobody
from rich.console import Console

from node.cli import render, turn
from node.cli.turn import View
from node.errors import NoQuorum
from node.v1 import generate_pb2, types_pb2


def test_piped_it_is_the_answer_and_nothing_else(run: Run, node: FakeNode) -> None:
    done = run("ask", "How", "many?", "--address", node.address)
    assert (done.code, done.out, done.err) == (0, "The answer is 42.\n", "")
    asked = node.requests[0]
    assert [(m.role, m.content) for m in asked.messages] == [("user", "How many?")]
    assert (asked.candidates, asked.strategy, asked.scope, asked.topic) == (0, "", generate_pb2.SCOPE_MESH, "")
    assert asked.request_id
    assert not asked.params.HasField("seed")


def test_a_long_prompt_says_now_and_then_how_far_it_is(
    run: Run, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.reads = 0.01
    monkeypatch.setattr(turn, "PLAIN_EVERY_S", 600.0)
    assert run("ask", "x", "--address", node.address).err == "", "it was soon read"
    ticks = itertools.count()  # a second at every look
    monkeypatch.setattr(turn, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    monkeypatch.setattr(turn, "PLAIN_EVERY_S", 3.0)
    done = run("ask", "x", "--address", node.address)
    assert done.out == "The answer is 42.\n"
    lines = done.err.splitlines()
    assert 1 <= len(lines) <= 3
    assert all(re.fullmatch(r"note: reading the prompt: [3-7],000 of 8,000 tokens", line) for line in lines)
    assert run("ask", "x", "--json", "--address", node.address).err == ""


def test_every_option_reaches_the_node(run: Run, node: FakeNode) -> None:
    argv = (
        "-n 3 --strategy confidence --local --max-tokens 9 --temperature 0 --seed 0 --model tiny --system Short. "
        "--top-p 0.5 --top-k 0 --min-p 0 --repeat-penalty 1.5 --presence-penalty -1 --frequency-penalty 0.25 "
        "--top-logprobs 0 --ignore-eos"
    )
    assert run("ask", "x", "--address", node.address, *argv.split()).code == 0
    asked = node.requests[0]
    assert (asked.candidates, asked.strategy, asked.scope, asked.model) == (3, "confidence", 1, "tiny")
    assert asked.params.max_tokens == 9
    assert asked.params.HasField("temperature")
    assert asked.params.HasField("seed")
    assert asked.params.HasField("top_k")
    assert asked.params.HasField("min_p")
    params = asked.params
    assert (params.top_p, params.top_k, params.min_p, params.repeat_penalty) == (0.5, 0, 0, 1.5)
    assert (params.presence_penalty, params.frequency_penalty) == (-1, 0.25)
    assert (params.logprobs, params.top_logprobs, params.ignore_eos) == (True, 0, True)
    assert [(m.role, m.content) for m in asked.messages] == [("system", "Short."), ("user", "x")]


def test_tokens_and_their_probabilities(run: Run, node: FakeNode) -> None:
    top = [types_pb2.TopLogprob(token=t, logprob=math.log(p)) for t, p in (("42", 0.75), ("\n\x1b[2J", 0.125))]
    node.logprobs = [types_pb2.TokenLogprob(token="42", logprob=math.log(0.75), top_logprobs=top)]
    done = run("ask", "x", "--top-logprobs", "2", "--address", node.address)
    assert done.out.splitlines()[1:] == [
        "",
        "token  probability  most probable",
        r"'42'         75.0%  '42' 75.0%  '\n\x1b[2J' 12.5%",
    ]
    assert (node.requests[0].params.logprobs, node.requests[0].params.top_logprobs) == (True, 2)


def test_one_candidate_is_the_same_text(run: Run, node: FakeNode) -> None:
    assert run("ask", "x", "-n", "1", "--address", node.address).out == "The answer is 42.\n"


def test_votes_are_plain_lines(run: Run, node: FakeNode) -> None:
    node.lost = [types_pb2.Loss(node=THERE, reason="connection reset", candidates=[6, 7])]
    done = run("ask", "x", "--votes", "--address", node.address)
    assert done.out.splitlines() == [
        "The answer is 42.",
        "",
        "answer  votes  share  candidates",
        "42          4  0.80   hal: 1 2 3; bob: 4",
        "41          1  0.20   bob: 5",
        "strategy    majority",
        "confidence  0.80",
        "margin      0.60",
        "dissent     5",
        "candidates  5 of 5 finished",
        "lost        6 7 of bob: connection reset",
        "tokens      prompt 30 (20 cached), answer 7, all candidates 35",
        "time        queue 0 ms, prefill 12 ms, first token 16 ms, total 1.2 s",
    ]


def test_votes_of_several_models_name_them(run: Run, node: FakeNode) -> None:
    """A name is what a peer says: what a terminal would act on is taken out of it."""
    node.models = [
        types_pb2.ModelVote(model="tiny", weight=1, candidates=[1, 2, 3]),
        types_pb2.ModelVote(model="b\x1b[2Jig", weight=0.4, candidates=[4]),
    ]
    lines = run("ask", "x", "--votes", "--candidates", "4", "--address", node.address).out.splitlines()
    assert "42          3  0.75   hal (tiny): 1 2 3" in lines
    assert "41          1  0.25   bob (big): 4" in lines
    assert "model       tiny, 3 candidates of weight 1.00" in lines
    assert "model       b[2Jig, 1 candidate of weight 0.40" in lines


@pytest.mark.parametrize(
    ("key", "text", "shown"),
    [("7", "3+4=7\nanswer: 7", "7"), ("3", "3+0=3", "3"), ("hello there", "Hello there!", "Hello there!")],
)
def test_a_vote_shows_the_answer_in_its_best_form(key: str, text: str, shown: str) -> None:
    out = io.StringIO()
    clusters = [types_pb2.Cluster(key=key, count=1, weight=1, medoid=text, medoid_id=1, members=[1])]
    outcome = types_pb2.Outcome(clusters=clusters, winner=1)
    render.votes(render.console(out), generate_pb2.GenerateResponse(outcome=outcome), {})
    assert out.getvalue().splitlines()[1].split("  ")[0].rstrip() == shown


def test_what_went_wrong_on_the_way_is_said_on_stderr(run: Run, node: FakeNode) -> None:
    node.warnings = ["the turn is on this disk only"]
    node.lost = [types_pb2.Loss(node=THERE, reason="it died", candidates=[5])]
    done = run("ask", "x", "--address", node.address)
    assert done.out == "The answer is 42.\n"
    assert done.err == "note: the turn is on this disk only\nnote: lost 5 of bob: it died\n"


@pytest.mark.parametrize(("most", "said"), [(7, "after 7 tokens: allow more with --max-tokens"), (8, "full at 37")])
def test_why_an_answer_was_cut_off(
    most: int, said: str, run: Run, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = types_pb2.Usage(prompt_tokens=30, completion_tokens=7)
    told: list[str] = []
    monkeypatch.setattr(render, "note", told.append)
    render.warnings(
        generate_pb2.GenerateResponse(text="so", finish_reason="length", usage=usage), {}, how="", most=most
    )
    assert len(told) == 1
    assert said in told[0]


def test_json_is_the_whole_response_with_the_protos_names(run: Run, node: FakeNode) -> None:
    node.text = "Zweiundvierzig, naïvement \x1b[31m"
    done = run("ask", "x", "--json", "--votes", "--address", node.address)
    assert (done.code, done.err) == (0, "")
    answer = json.loads(done.out)
    fields = {f.name for f in generate_pb2.GenerateResponse.DESCRIPTOR.fields}
    assert set(answer) == fields - {"version"}  # no topic, so no version; what is empty is printed all the same
    assert answer["text"] == node.text
    assert answer["outcome"]["stopped_early"] is False
    assert answer["outcome"]["clusters"][0]["members"] == [1, 2, 3, 4]
    assert answer["usage"]["prompt_tokens"] == 30
    assert "naïvement" in done.out


def test_the_prompt_may_come_from_a_pipe(run: Run, node: FakeNode) -> None:
    assert run("ask", "--address", node.address, stdin="Grüße\n".encode()).code == 0
    assert run("ask", "-", "--address", node.address, stdin=b"dash").code == 0
    assert run("ask", "Sum up:", "-", "--address", node.address, stdin=b"a\nb\n").code == 0
    assert run("ask", "given", "--address", node.address, stdin=b"not read").code == 0
    prompts = [r.messages[0].content for r in node.requests]
    assert prompts == ["Grüße", "dash", "Sum up:\n\na\nb", "given"]
    done = run("ask", "-", "--address", node.address, stdin=b"ok \xff\xfe")
    assert (done.code, done.err) == (2, "error: standard input is not valid UTF-8 (byte 3)\n")


def test_a_topic_is_begun_once_and_then_continued(run: Run, node: FakeNode) -> None:
    argv = ["--address", node.address, "--topic", "garden", "--system", "Short."]
    assert run("ask", "one", *argv).code == 0
    second = run("ask", "two", *argv, "--votes")
    assert second.code == 0
    assert "--system counts only where one begins" in second.err
    assert "topic       garden, version 2" in second.out
    seen = [(r.append, r.begin, [m.role for m in r.messages]) for r in node.requests]
    assert seen == [(True, False, ["user"]), (True, True, ["system", "user"]), (True, False, ["user"])]


def test_nobody_there(run: Run) -> None:
    address = nobody()
    done = run("ask", "x", "--address", address)
    assert (done.code, done.out) == (1, "")
    assert done.err == f"error: no node answers at {address}: start one with `python -m node --join auto`\n"


def test_without_an_address_it_is_the_default_port(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    address = nobody()
    monkeypatch.setattr("node.cli.reach.DEFAULT_ADDRESS", address)
    assert f"no node answers at {address}" in run("ask", "x").err


def test_several_addresses_are_tried_in_turn_with_one_request_id(run: Run, node: FakeNode) -> None:
    done = run("ask", "x", "--address", f"{nobody()},{node.address}")
    assert (done.code, done.out, done.err) == (0, "The answer is 42.\n", "")


FAILURES = {
    "overloaded": (grpc.StatusCode.RESOURCE_EXHAUSTED, "64 requests wait already: try again in 3 s", 1),
    "invalid": (grpc.StatusCode.INVALID_ARGUMENT, "prompt is 5000 tokens, a slot holds 4096", 2),
    "no quorum": (NoQuorum("2 of 9 candidates finished, too few"), "2 of 9 candidates finished, too few", 1),
    "backend": (grpc.StatusCode.INTERNAL, "llama_decode failed\nwith \x1b[31mcolour", 1),
    "not found": (grpc.StatusCode.NOT_FOUND, "this node serves tiny, not huge", 1),
    "outside the taxonomy": (grpc.StatusCode.UNKNOWN, "Exception calling application: boom", 1),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_is_one_line(name: str, run: Run, node: FakeNode) -> None:
    code, detail, exit_code = FAILURES[name]
    node.fail = [code if isinstance(code, NoQuorum) else (code, detail)]
    done = run("ask", "x", "--address", node.address)
    assert (done.code, done.out) == (exit_code, "")
    assert done.err.startswith("error: " + detail.split("\n")[0])
    assert done.err.count("\n") == 1
    assert "\x1b" not in done.err


def test_the_deadline_is_named(run: Run) -> None:
    node = FakeNode(hang=True)
    try:
        for seconds in ("0.3", "3", "30"):  # the next where the node was not reached in time
            done = run("ask", "x", "--timeout", seconds, "--address", node.address)
            if node.requests:
                break
        assert (done.code, done.err) == (1, f"error: no answer within {seconds} s: allow more with --timeout\n")
        assert node.cancelled.wait(60)
    finally:
        node.stop()


def test_what_is_not_a_node(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as s:
        s.settimeout(0.1)
        done = run("status", "--address", f"127.0.0.1:{s.getsockname()[1]}")
    assert done.code == 1
    assert done.err.count("\n") == 1


def test_verbose_shows_where(run: Run) -> None:
    done = run("ask", "x", "--address", nobody(), "--verbose")
    assert done.code == 1
    assert "Traceback" in done.err
    assert done.err.splitlines()[-1].startswith("error: no node answers")


def test_while_a_vote_goes_on_the_leader_is_shown_as_it_will_be_answered() -> None:
    """Not the key that it is compared by, nor what some other candidate writes meanwhile."""
    view = View(quiet=True)
    events = [
        generate_pb2.StreamResponse(plan=generate_pb2.Plan(shares=[generate_pb2.Share(candidates=[1, 2, 3])])),
        generate_pb2.StreamResponse(token=generate_pb2.Token(candidate_id=3, text="xx yy zz " * 9)),
    ]
    for event in events:
        view.on_event(event)
    assert "xx yy zz" in _lines(view)[1], "before anybody leads, who has written most"
    for id, text, key in ((1, "Noted.", "noted"), (2, "So 12+8=20.\nanswer: 20", "20")):
        view.on_event(generate_pb2.StreamResponse(candidate=types_pb2.Candidate(id=id, text=text, answer=key)))
        leader = generate_pb2.Leader(candidate_id=id, answer=key, share=1 / id, finished=id)
        view.on_event(generate_pb2.StreamResponse(leader=leader))
        seen = _lines(view)
        if id == 1:
            assert "1/3 candidates · leading with 100%: Noted. ·" in seen[0]
            assert seen[1:] == ["  Noted."]
    assert "2/3 candidates · leading with 50%: 20 ·" in seen[0]
    assert seen[1:] == ["  So 12+8=20.", "  answer: 20"]


def _lines(view: View) -> list[str]:
    drawn = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    with drawn.capture() as capture:
        drawn.print(view._picture())
    return [line.rstrip() for line in capture.get().splitlines()]
