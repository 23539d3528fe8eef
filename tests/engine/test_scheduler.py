"""The scheduler over the strict fake: whatever comes and goes, every job ends, says its own answer, leaks nothing."""

from collections import defaultdict
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.engine.fake import FakeBackend, FakeSpec
from node.engine.pace import Pace
from node.engine.scheduler import Done, Ended, Event, Failed, Job, Prefilled, Scheduler, Text, derive_seed, job
from node.errors import BackendError, InvalidRequest, Overloaded
from node.types import FinishReason, Message, SamplingParams
from tests.engine.drive import Clock, assert_nothing_leaked, drain


def setup(spec: FakeSpec | None = None, **limits: int) -> tuple[FakeBackend, Scheduler]:
    backend = FakeBackend(spec or FakeSpec(), **limits)  # type: ignore[arg-type]
    return backend, Scheduler(backend, Clock(), queue_limit=100, node="here")


def make(backend: FakeBackend, id: str, text: str, candidates: int = 1, **params: object) -> Job:
    prompt = backend.tokenize(backend.render([Message("user", text)], []))
    return job(id, prompt, range(1, candidates + 1), SamplingParams(**params), seed=7)  # type: ignore[arg-type]


def texts(events: list[Event]) -> dict[int, str]:
    out: dict[int, str] = defaultdict(str)
    for event in events:
        if isinstance(event, Text):
            for candidate, piece in event.pieces:
                out[candidate] += piece
    return dict(out)


def test_candidates_fork_from_one_prefill() -> None:
    backend, scheduler = setup()
    scheduler.submit(make(backend, "a", "one two three", candidates=5))
    events = drain(scheduler)
    prefills = [e for e in events if isinstance(e, Prefilled)]
    assert len(prefills) == 1
    assert scheduler.prefilled_tokens == prefills[0].prompt  # once, not five times
    done = [e.candidate for e in events if isinstance(e, Done)]
    assert {c.id: c.text for c in done} == texts(events) == dict.fromkeys(range(1, 6), "echo: one two three")
    assert all(c.finish_reason is FinishReason.STOP and c.node == "here" for c in done)
    assert all(c.mean_logprob == pytest.approx(-0.1) and c.tokens == 5 for c in done)  # four words and the end
    assert isinstance(events[-1], Ended)
    assert_nothing_leaked(backend, scheduler)


@pytest.mark.parametrize("sequences", [1, 2, 3, 8])
def test_more_candidates_than_sequences_come_in_waves(sequences: int) -> None:
    backend, scheduler = setup(sequences=sequences)
    scheduler.submit(make(backend, "a", "hello there", candidates=8))
    events = drain(scheduler)
    assert texts(events) == dict.fromkeys(range(1, 9), "echo: hello there")
    assert sum(isinstance(e, Prefilled) for e in events) == 1
    assert_nothing_leaked(backend, scheduler)


def test_a_wave_begins_first_and_the_rest_only_when_it_has_all_but_ended() -> None:
    spec = FakeSpec(answers=("one two three four", "one two three four five six seven eight"))
    backend, scheduler = setup(spec)
    base = make(backend, "a", "q", candidates=9)
    scheduler.submit(replace(base, wave=4))
    begun: set[int] = set()
    ended: set[int] = set()
    while not scheduler.idle:
        for event in scheduler.step():
            if isinstance(event, Text):
                new = {candidate for candidate, _ in event.pieces} - begun
                assert not begun or not new or len(begun - ended) <= 1
                begun |= new
            elif isinstance(event, Done):
                ended.add(event.candidate.id)
        assert begun
    assert len(ended) == 9
    assert_nothing_leaked(backend, scheduler)


@pytest.mark.parametrize("sequences", [1, 2, 3, 6])
def test_a_wave_with_few_sequences(sequences: int) -> None:
    backend, scheduler = setup(sequences=sequences)
    scheduler.submit(replace(make(backend, "a", "q", candidates=9), wave=4))
    assert len(texts(drain(scheduler))) == 9
    assert_nothing_leaked(backend, scheduler)


def test_a_wave_that_decides_spends_nothing_on_the_rest() -> None:
    backend, scheduler = setup()
    scheduler.submit(replace(make(backend, "a", "q", candidates=9), wave=4))
    done = 0
    while done < 3:
        done += sum(isinstance(e, Done) for e in scheduler.step())
    events = scheduler.cancel("a")
    spent = scheduler.decoded_tokens
    assert isinstance(events[-1], Ended)
    assert spent <= 4 * len(backend.tokenize("echo: q")) + 4  # and each one's end
    assert_nothing_leaked(backend, scheduler)


def test_the_same_seed_gives_the_same_answers() -> None:
    spec = FakeSpec(answers=("a", "b", "c"))
    runs = []
    for _ in range(2):
        backend, scheduler = setup(spec)
        scheduler.submit(make(backend, "a", "q", candidates=9))
        runs.append(texts(drain(scheduler)))
    assert runs[0] == runs[1]
    assert len(set(runs[0].values())) > 1


def test_a_long_prompt_does_not_stall_those_who_write() -> None:
    backend, scheduler = setup(batch=512)
    scheduler.submit(make(backend, "short", " ".join(["word"] * 40)))
    scheduler.step()
    scheduler.submit(make(backend, "long", " ".join(["word"] * 1000)))
    wrote = []
    for _ in range(6):
        wrote.append(any(isinstance(e, Text) and e.job == "short" for e in scheduler.step()))
    assert all(wrote)  # a token in every step while the other's prompt enters in chunks
    drain(scheduler)


def test_stop_strings_and_length_end_a_candidate() -> None:
    backend, scheduler = setup(FakeSpec(answers=("one two STOP three",)))
    scheduler.submit(make(backend, "a", "q", stop=("STOP",)))
    scheduler.submit(make(backend, "b", "q", max_tokens=2))
    done = {e.job: e.candidate for e in drain(scheduler) if isinstance(e, Done)}
    assert (done["a"].text, done["a"].finish_reason) == ("one two ", FinishReason.STOP)
    assert (done["b"].text, done["b"].finish_reason) == ("one two", FinishReason.LENGTH)


def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers() -> None:
    backend, scheduler = setup(context=64)
    long = make(backend, "a", " ".join(["word"] * 100))
    with pytest.raises(InvalidRequest, match=rf"{len(long.prompt)} tokens .* 64"):
        scheduler.submit(long)
    with pytest.raises(InvalidRequest, match="empty"):
        scheduler.submit(job("e", [], [1], SamplingParams(), 1))


def test_the_queue_is_bounded() -> None:
    backend = FakeBackend(FakeSpec(), sequences=1)
    scheduler = Scheduler(backend, Clock(), queue_limit=2)
    scheduler.submit(make(backend, "a", "q"))
    scheduler.submit(make(backend, "b", "q"))
    with pytest.raises(Overloaded, match="2 requests"):
        scheduler.submit(make(backend, "c", "q"))


def test_cancelled_candidates_free_their_sequences_at_once() -> None:
    backend, scheduler = setup(FakeSpec(answers=(" ".join(["w"] * 50),)))
    scheduler.submit(make(backend, "a", "q", candidates=4))
    scheduler.step()
    scheduler.step()
    events = scheduler.cancel("a", [2, 3, 99])
    assert [(e.candidate.id, e.candidate.finish_reason) for e in events if isinstance(e, Done)] == [
        (2, FinishReason.CANCELLED),
        (3, FinishReason.CANCELLED),
    ]
    assert backend.used_sequences == 3  # two that write, and the prompt of one that does not
    events = scheduler.cancel("a")
    assert isinstance(events[-1], Ended)
    assert scheduler.free_sequences == 16
    assert_nothing_leaked(backend, scheduler)


def test_a_deadline_ends_candidates_with_what_they_have() -> None:
    backend, scheduler = setup(FakeSpec(answers=(" ".join(["w"] * 500),)))
    base = make(backend, "a", "q", candidates=2)
    scheduler.submit(Job(base.id, base.prompt, base.candidates, base.params, deadline=0.05))
    done = [e.candidate for e in drain(scheduler) if isinstance(e, Done)]
    assert [c.finish_reason for c in done] == [FinishReason.DEADLINE] * 2
    assert all(c.text.startswith("w w") for c in done)


def test_a_failed_decode_fails_what_runs_and_frees_everything() -> None:
    backend, scheduler = setup(FakeSpec(fail_after=3, answers=(" ".join(["w"] * 50),)))
    scheduler.submit(make(backend, "a", "q", candidates=3))
    scheduler.submit(make(backend, "b", "q"))
    failed = [e for e in drain(scheduler) if isinstance(e, Failed)]
    assert {e.job for e in failed} == {"a", "b"}
    assert all(isinstance(e.error, BackendError) for e in failed)
    assert backend.used_sequences == 0


class RefusesGrammar(FakeBackend):
    """Says no to the second sampler, as llama.cpp does to a grammar that it cannot parse."""

    asked = 0

    def sampler(self, params: SamplingParams, seed: int, prompt: object) -> object:  # type: ignore[override]
        self.asked += 1
        if self.asked == 2:
            raise InvalidRequest("the grammar cannot be parsed")
        return super().sampler(params, seed, prompt)  # type: ignore[arg-type]


def test_a_refused_sampler_fails_its_request_and_leaks_no_sequence() -> None:
    backend = RefusesGrammar(FakeSpec())
    scheduler = Scheduler(backend, Clock())  # type: ignore[arg-type]
    scheduler.submit(make(backend, "a", "q", candidates=4))
    events = drain(scheduler)
    assert isinstance(events[-1], Failed)
    assert scheduler.free_sequences == backend.info.sequences
    assert backend.used_sequences == 0


def test_kv_cells_are_reserved_for_the_worst_case() -> None:
    backend, scheduler = setup(FakeSpec(answers=("w",)), context=256, cells=300)
    first = make(backend, "a", "q", candidates=2, max_tokens=100)
    scheduler.submit(first)
    scheduler.submit(make(backend, "b", "q", candidates=2, max_tokens=100))
    scheduler.step()
    assert scheduler.queued == 1  # both together could need more than 300 cells
    drain(scheduler)
    with pytest.raises(InvalidRequest, match="300 KV cells"):
        scheduler.submit(make(backend, "c", " ".join(["w"] * 200), candidates=200))


@pytest.mark.parametrize("base", [0, 1, 2**63])
def test_seeds_differ_by_candidate_and_fit_llama_cpp(base: int) -> None:
    seeds = [derive_seed(base, c) for c in range(1000)]
    assert len(set(seeds)) == 1000
    assert all(0 <= s < 2**32 - 1 for s in seeds)


actions = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["submit", "submit in waves"]), st.integers(1, 7), st.integers(1, 60)),
        st.tuples(st.just("cancel"), st.integers(0, 12), st.integers(0, 8)),
        st.tuples(st.just("step"), st.integers(1, 6), st.just(0)),
    ),
    max_size=30,
)


@settings(max_examples=150, deadline=None)
@given(actions, st.integers(1, 6), st.integers(80, 400))
def test_whatever_happens_every_job_ends_once_and_nothing_leaks(
    actions: list[tuple[str, int, int]], sequences: int, cells: int
) -> None:
    backend = FakeBackend(FakeSpec(), sequences=sequences, context=80, cells=cells, batch=16)
    scheduler = Scheduler(backend, Clock(), queue_limit=50, node="here")
    events: list[Event] = []
    jobs: dict[str, Job] = {}
    refused = set()
    for kind, x, y in actions:
        if kind.startswith("submit"):
            id = f"job{len(jobs)}"
            jobs[id] = make(backend, id, " ".join(f"{id}-{i}" for i in range(y)), candidates=x, max_tokens=12)
            if kind != "submit":
                jobs[id] = replace(jobs[id], wave=2)
            try:
                scheduler.submit(jobs[id])
            except InvalidRequest:
                refused.add(id)
        elif kind == "cancel":
            events += scheduler.cancel(f"job{x}", None if y == 0 else [y])
        else:
            for _ in range(x):
                events += scheduler.step()
    events += drain(scheduler)
    ended = [e.job for e in events if isinstance(e, Ended | Failed)]
    assert sorted(ended) == sorted(set(jobs) - refused)
    assert not any(isinstance(e, Failed) for e in events)
    done = [(e.job, e.candidate) for e in events if isinstance(e, Done)]
    assert sorted((j, c.id) for j, c in done) == sorted(
        (id, c) for id, j in jobs.items() if id not in refused for c, _ in j.candidates
    )
    for id, candidate in done:
        whole = "echo: " + " ".join(f"{id}-{i}" for i in range(100))
        assert whole.startswith(candidate.text)  # its own prompt's words, nobody else's
    assert_nothing_leaked(backend, scheduler)


def test_a_short_prompt_is_not_kept_waiting_by_a_long_one() -> None:
    backend, scheduler = setup(batch=16)
    scheduler.submit(make(backend, "long", " ".join(f"w{i}" for i in range(400))))
    scheduler.step()
    scheduler.submit(make(backend, "short", "hello there"))
    for _ in range(12):
        if any(isinstance(e, Ended) and e.job == "short" for e in scheduler.step()):
            break
    else:
        raise AssertionError("the short one waited for the long one")
    drain(scheduler)
    assert_nothing_leaked(backend, scheduler)


def test_while_others_write_a_long_prompt_enters_in_pieces_that_they_can_wait_for() -> None:
    backend, scheduler = setup()
    sizes: list[int] = []
    decode = backend.decode
    backend.decode = lambda rows: (sizes.append(len(rows)), decode(rows))[1]  # type: ignore[method-assign]
    scheduler.submit(make(backend, "writer", " ".join(f"x{i}" for i in range(200))))
    for _ in range(20):
        scheduler.step()
    scheduler.pace = Pace(0.002, is_measured=True)
    scheduler.pace.saw(1, 0, 0.020)
    sizes.clear()
    scheduler.submit(make(backend, "long", " ".join(f"w{i}" for i in range(300))))
    scheduler.step()
    assert 1 < sizes[0] <= 1 + scheduler.pace.room(1, 1, 512).fits(0.002) < 20
    drain(scheduler)
    assert_nothing_leaked(backend, scheduler)


def test_topics_take_turns_when_sequences_are_few() -> None:
    backend, scheduler = setup(sequences=1)
    for i in range(3):
        scheduler.submit(replace(make(backend, f"a{i}", "one"), topic="a"))
    scheduler.submit(replace(make(backend, "b0", "one"), topic="b"))
    order = [e.job for e in drain(scheduler) if isinstance(e, Ended)]
    assert order == ["a0", "a1", "a2", "b0"]  # one at a time is first come, first served
    backend, scheduler = setup(sequences=2)
    for i in range(4):
        scheduler.submit(replace(make(backend, f"a{i}", " ".join(["w"] * 30)), topic="a"))
    scheduler.submit(replace(make(backend, "b0", "one"), topic="b"))
    order = [e.job for e in drain(scheduler) if isinstance(e, Ended)]
    assert order.index("b0") < order.index("a2")  # a second topic does not wait behind all of the first one's


@pytest.mark.parametrize("told", [True, False])
def test_a_vote_that_is_nearly_decided_gets_the_next_free_sequence(told: bool) -> None:
    backend, scheduler = setup(FakeSpec(answers=("w w w",)), sequences=7)
    for id in "ab":  # eight each, two at first; each has its prompt, and one sequence is left for either
        scheduler.submit(replace(make(backend, id, f"q {id}", candidates=8), wave=2))
    ended = []
    while not scheduler.idle:
        ended += [e.job for e in scheduler.step() if isinstance(e, Ended)]
        if told:
            scheduler.expect("b", 1)
            scheduler.expect("unknown", 1)
    assert ended == (["b", "a"] if told else ["a", "b"])
    assert_nothing_leaked(backend, scheduler)
