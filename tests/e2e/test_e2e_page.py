"""The page in Debian's headless Chromium, against real nodes: by keyboard, on a phone's width, dark and light."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import browser
import pytest
from browser import ENTER, ESCAPE, TAB, Browser, browsers
from swarm import Node, Swarm, slow, together, until

from node.v1 import kvsync_pb2

Nodes = tuple[Swarm, list[Node]]
# Remembers what is drawn on its way from node to node.
WATCH = """
window.boxes = [];
new MutationObserver((all) => all.forEach((m) => m.addedNodes.forEach((n) => {
  if (n.classList?.contains("box")) window.boxes.push(n.textContent);
}))).observe(document.getElementById("mesh"), {childList: true, subtree: true});
"""
# Remembers how many candidates were being written at a time, once all of them had begun.
WRITING = """
window.writing = 0;
new MutationObserver(() => {
  const texts = [...document.querySelectorAll(".card.writing .text")].map((t) => t.textContent);
  window.writing = Math.max(window.writing, texts.filter((t) => t.includes("thought3")).length);
}).observe(document.body, {childList: true, subtree: true, characterData: true});
"""
# Counts how often an answer is drawn, and the frames meanwhile.
COUNT = """
window.seen = 0;
window.draws = 0;
(function frame() { window.seen += 1; requestAnimationFrame(frame); })();
new MutationObserver((all) => { window.draws += all.filter((m) => m.target.className.startsWith("answer")).length; })
  .observe(document.getElementById("turns"), {childList: true, subtree: true});
"""
# Keeps what is asked of the node.
LISTEN = """
window.sent = [];
const send = window.fetch;
window.fetch = (path, how) => { if (how?.body) window.sent.push(JSON.parse(how.body)); return send(path, how); };
"""
IDLE = "return document.getElementById('send').textContent == 'Ask'"


@pytest.fixture(scope="module")
def windows() -> Iterator[Callable[[], Browser]]:
    if (missing := browser.missing()) and not os.environ.get("CI"):
        pytest.skip(f"{missing} not installed: apt-get install chromium chromium-driver")
    with browsers() as opened:
        yield opened


@pytest.fixture(scope="module")
def window(windows: Callable[[], Browser]) -> Browser:
    return windows()


def open_page(window: Browser, node: Node, width: int = 1280, scheme: str = "dark") -> None:
    window.look(width, 860, scheme)
    window.go(f"http://{node.http_address}/health")
    window.run("localStorage.clear()")  # no conversation of another test goes on
    window.log()  # of the page before
    window.go(f"http://{node.http_address}/")
    window.wait(
        "return document.querySelectorAll('#nodes li').length && document.querySelectorAll('#mode option').length",
        "the page shows its node",
    )


def ask(window: Browser, text: str) -> None:
    window.run("document.activeElement.blur()")
    window.type("/")  # puts the cursor where questions are typed
    window.type(text + ENTER)
    window.wait("return document.querySelectorAll('.turn .asked').length", "the question is shown")


def test_a_vote_is_watched(window: Browser, llamas: Nodes) -> None:
    one, two = llamas[1]
    open_page(window, one)
    until(lambda: len(window.texts("#nodes li")) == 2, "both nodes are in the picture")
    until(lambda: "round trip" in window.texts("#nodes li")[1], "and how far it is")
    ask(window, "What is 12 + 30?")
    window.wait(IDLE, "the answer is there")
    until(lambda: len(window.texts("#mesh .link")) == 1, "one link")
    cards = window.texts(".card .who")
    assert len(cards) == 8
    assert {c.split(" · ")[0] for c in cards} == {str(i) for i in range(1, 9)}
    assert len(window.texts(".card.winner")) == 1
    parts = window.texts(".bar i")
    assert parts
    facts = window.texts(".facts")[0]
    assert "confidence" in facts
    assert "of 8" in facts
    won = window.run("return document.querySelector('.card.winner .text').textContent")
    assert window.texts(".answer")[0].split() == won.split(), "what won is what is answered"
    until(lambda: window.texts("#topics td"), "the conversation is a topic")
    until(lambda: window.texts("#first") != ["–"], "the time to the first token")
    assert window.run("return [...document.querySelectorAll('#rates .line')].length") == 1
    window.run("document.getElementById('prompt').focus()")
    for id in ("mode", "count", "send"):
        window.type(TAB)
        assert window.run("return document.activeElement.id") == id, "every control is reached by keyboard"
    window.run("document.querySelector('.card').focus()")
    window.type(ENTER)
    assert window.run("return document.querySelector('.card').getAttribute('aria-expanded')") == "true"
    window.run(WATCH)
    ask(window, "And 1 more?")
    window.wait("return document.querySelectorAll('.answer').length == 2", "the conversation goes on")
    addresses = window.run("return performance.getEntriesByType('resource').map(e => e.name)")
    assert all(a.startswith(f"http://{one.http_address}/") for a in addresses)
    topic = window.run("return localStorage.getItem('topic')")
    assert topic.startswith("what-is-12-30-")

    def drawn() -> list[str]:  # other tests' topics may travel meanwhile
        return [box for box in window.run("return window.boxes") if box.startswith(topic)]

    until(drawn, "the snapshot's way is drawn")
    travels = [t for t in one.client.status().travels if t.topic == topic]
    assert {(t.source, t.target) for t in travels} == {(one.id, two.id)}
    assert travels[-1].bytes > 0 < travels[-1].tokens
    assert drawn()[-1].startswith(travels[-1].topic), "what is drawn is what went"
    assert drawn()[-1].endswith((" kB", " MB"))
    assert window.log() == []
    until(lambda: two.used() == 0, "nothing goes on")


def test_one_candidate_is_streamed_and_stopped_by_a_key(window: Browser, own: Swarm) -> None:
    node = own.start("--join", "none", *slow(1600, 40, "42"))
    own.ready(node)
    open_page(window, node)
    window.run("document.getElementById('mode').value = 'fake'")
    ask(window, "hello")
    window.wait(
        "return document.querySelector('.answer')?.textContent.includes('thought3')", "it is shown as it is written"
    )
    assert node.used() == 1
    window.type(ESCAPE)
    window.wait(IDLE, "it stops")
    assert window.texts(".problem") == ["stopped"]
    until(lambda: node.used() == 0, "the sequence is free")
    node.process.kill()
    window.wait("return document.getElementById('pulse').className == 'off'", "it says that the node is gone")


def test_a_peers_candidates_are_watched_while_they_are_written(window: Browser, own: Swarm) -> None:
    one, two = own.up(2, "--early-stop", "off", *slow(60, 30, "42"))
    open_page(window, one)
    until(lambda: len(window.texts("#nodes li")) == 2, "both nodes are in the picture")
    window.run(WRITING)
    ask(window, "What is 6 * 7?")
    window.wait(IDLE, "the answer is there")
    assert window.run("return window.writing") == 8, "all of them at a time, theirs too"
    names = {name for card in window.texts(".card .who") for name in (one.id, two.id) if name[:4] in card}
    assert names == {one.id, two.id}
    assert all("answer: 42" in t for t in window.texts(".card .text"))
    assert window.log() == []


def test_a_long_prompt_is_seen_to_be_read(window: Browser, own: Swarm) -> None:
    node = own.start("--join", "none", "--backend", "fake", "--model", "fake:prefill_per_s=1000")
    own.ready(node)
    open_page(window, node)
    window.run(COUNT)
    window.run("document.getElementById('prompt').value = arguments[0]", "word " * 2500)
    window.run("document.getElementById('ask').requestSubmit()")
    window.wait("return document.querySelector('.reading progress')?.value > 0", "it shows how far it is")
    assert "of 2,5" in window.texts(".reading")[0]
    window.wait(IDLE, "the answer is there")
    assert window.texts(".reading") == []
    frames, draws = window.run("return [seen, draws]")
    assert 0 < draws <= frames + 2, "an answer of 2,500 tokens is drawn once a frame, not once a token"
    assert window.log() == []


def test_a_conversation_goes_on_at_the_next_visit_and_from_the_list(window: Browser, fakes: Nodes) -> None:
    node = fakes[1][0]
    known = {t.topic for t in node.client.status().topics}  # of other tests: the node is theirs too
    open_page(window, node)
    ideas = window.texts("#ideas button")
    assert all(idea.endswith("?") for idea in ideas), "they are whole"
    ask(window, "the first")
    window.wait(IDLE, "the answer is there")
    window.go(f"http://{node.http_address}/")
    window.wait("return document.querySelectorAll('.turn .answer').length", "what was said is there again")
    assert window.texts(".asked") == ["the first"]
    ask(window, "the second")
    window.wait(f"return document.querySelectorAll('.turn .answer').length == 2 && (() => {{{IDLE}}})()", "it goes on")
    made = [t for t in node.client.status().topics if t.topic.startswith("the-first-") and t.topic not in known]
    assert [t.version.turn for t in made] == [2], "as the same topic"
    window.run("document.getElementById('fresh').click()")
    assert window.texts(".asked") == []
    window.go(f"http://{node.http_address}/")
    window.wait("return document.querySelectorAll('#topics button').length", "the topics are listed")
    assert window.texts(".asked") == [], "a new one was begun"
    window.run("document.querySelector('#topics button').click()")
    window.wait("return document.querySelectorAll('.turn .answer').length == 2", "the one that was used last opens")
    assert window.texts(".asked") == ["the first", "the second"]
    assert window.log() == []


def test_settings_are_sent_and_kept(window: Browser, fakes: Nodes) -> None:
    open_page(window, fakes[1][0])
    window.run(LISTEN)
    ask(window, "as the node has it")
    window.wait(IDLE, "the answer is there")
    (plain,) = window.run("return window.sent")
    assert {"temperature", "top_p", "max_tokens"}.isdisjoint(plain)
    assert [m["role"] for m in plain["messages"]] == ["user"]
    window.run("document.getElementById('tune').focus()")
    window.type(ENTER)
    window.type("Be brief." + TAB + "0.5" + TAB + "7" + ENTER)  # a share is at most 1
    assert window.run("return document.getElementById('settings').open"), "what cannot be is not taken"
    window.run("document.getElementById('set-top_p').value = '0.9'")
    window.type(TAB + "64" + ENTER)
    assert not window.run("return document.getElementById('settings').open")
    window.run("document.getElementById('mode').value = 'conclave:quality'")
    window.run("document.getElementById('count').value = 3")
    window.run("document.getElementById('count').dispatchEvent(new Event('change'))")
    ask(window, "it goes on")
    window.wait(IDLE, "the answer is there")
    assert [m["role"] for m in window.run("return window.sent[1].messages")] == ["user", "assistant", "user"]
    window.go(f"http://{fakes[1][0].http_address}/")
    window.wait("return document.getElementById('mode').value == 'conclave:quality'", "it is kept")
    window.run(LISTEN + "document.getElementById('fresh').click()")
    ask(window, "a new one")
    window.wait(IDLE, "the answer is there")
    (sent,) = window.run("return window.sent")
    assert sent["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (sent["temperature"], sent["top_p"], sent["max_tokens"]) == (0.5, 0.9, 64)
    assert (sent["model"], sent["conclave"]["candidates"]) == ("conclave:quality", 3)
    assert window.texts(".opening p") == ["Be brief."]
    assert len(window.texts(".card")) == 3
    window.go(f"http://{fakes[1][0].http_address}/")
    window.wait("return document.querySelectorAll('.turn .answer').length", "what was said is there again")
    assert (window.texts(".opening p"), window.texts(".asked")) == (["Be brief."], ["a new one"])
    assert window.log() == []


def test_a_question_is_asked_again_edited_and_forgotten(window: Browser, fakes: Nodes) -> None:
    node, peer = fakes[1]
    open_page(window, node)
    ask(window, "one")
    window.wait(IDLE, "the answer is there")
    ask(window, "tow")
    window.wait(f"return document.querySelectorAll('.turn .answer').length == 2 && (() => {{{IDLE}}})()", "it goes on")
    offered = "[...document.querySelectorAll('.offered button')].filter(b => b.checkVisibility())"
    assert window.run(f"return {offered}.map(b => b.textContent)") == ["Copy", "Copy", "Ask again", "Edit"], (
        "the last one may be asked again"
    )
    window.run("document.querySelectorAll('.offered button')[5].click()")
    window.type(ESCAPE)
    assert window.texts(".edited") == []
    assert window.run("return document.getElementById('prompt').value") == ""
    window.run("document.querySelectorAll('.offered button')[5].click()")
    window.type("\ue003" * 3 + "two" + ENTER)
    last = "document.querySelector('.turn:last-child .answer')?.textContent"
    window.wait(f"return {last}?.includes('two')", "it is edited")
    window.wait(IDLE, "the answer is there")
    window.run("document.querySelectorAll('.offered button')[4].click()")
    window.wait(IDLE, "it is asked again")
    window.wait("return document.querySelectorAll('.turn .answer').length == 2", "the answer is there")
    assert window.texts(".asked") == ["one", "two"]
    topic = window.run("return localStorage.getItem('topic')")
    show = kvsync_pb2.ShowRequest(topic=topic)
    held = [m.content for m in node.client.kvsync.Show(show, timeout=60).messages]
    assert held == ["one", "echo: one", "two", "echo: two"], "nothing is said twice"
    until(lambda: topic in {t.topic for t in peer.client.status().topics}, "the peer has it")
    window.run("document.getElementById('find').value = arguments[0]", topic)
    window.run("document.getElementById('find').dispatchEvent(new Event('input'))")
    until(lambda: window.texts("#topics .open") == [topic], "it is found")
    window.run("document.querySelector('#topics .forget').focus()")
    window.type(ENTER + ESCAPE)
    assert window.texts("#topics .open") == [topic], "it is asked whether one means it"
    window.run("document.querySelector('#topics .forget').focus()")
    window.type(ENTER)
    assert topic in window.texts("#sure h2")[0]
    window.type(TAB + ENTER)
    window.wait("return !document.querySelectorAll('#topics button').length", "it is not listed")
    assert window.texts(".asked") == []
    for each in (node, peer):
        until(lambda each=each: topic not in {t.topic for t in each.client.status().topics}, "it is gone")  # type: ignore[misc]
    assert window.log() == []


def test_answers_and_code_are_copied(window: Browser, fakes: Nodes) -> None:
    said = "\n```py\nprint(1)\n```\n|a|b|\n|-|-|\n|1|[x](https://a.example/)|"
    open_page(window, fakes[1][0])
    window.run("document.getElementById('prompt').value = 'So:' + arguments[0]", said)
    window.run("document.getElementById('ask').requestSubmit()")
    window.wait(IDLE, "the answer is there")
    window.cdp("Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]})
    assert window.texts(".answer th, .answer td") == ["a", "b", "1", "x"]
    assert window.run("return document.querySelector('.answer a').rel").startswith("noopener")
    for where, text in ((".answer pre .copy", "print(1)"), (".offered .copy", f"echo: So:{said}")):
        window.run("document.querySelector(arguments[0]).focus()", where)
        window.type(ENTER)
        window.wait(f"return document.querySelector({where!r}).textContent == 'Copied'", "it is copied")
        assert window.run("return navigator.clipboard.readText()") == text
    assert window.log() == []


def test_whose_candidate_it_is_stands_on_its_card_where_models_differ(window: Browser, own: Swarm) -> None:
    one, two = (
        own.start("--backend", "fake", "--model", f"fake:answers=answer: 42,name={name}", "--early-stop", "off")
        for name in ("ant", "bee")
    )
    own.ready(one, two)
    together(one, two)
    open_page(window, one)
    until(lambda: len(window.texts("#nodes li")) == 2, "both nodes are in the picture")
    ask(window, "What is 6 * 7?")
    window.wait(IDLE, "the answer is there")
    assert set(window.texts(".card .by")) == {"ant", "bee"}
    assert {"ant", "bee"} <= {f.split()[0] for f in window.texts(".facts span")}
    assert window.log() == []


def test_texts_are_never_html(window: Browser, fakes: Nodes) -> None:
    open_page(window, fakes[1][0])
    ask(window, "<img src=x onerror=alert(1)> **bold** `<b>code</b>` 2*3*4")
    window.wait(IDLE, "the answer is there")
    assert window.run("return document.querySelectorAll('#turns img, .answer p b').length") == 1  # the bold one
    assert "<img src=x onerror=alert(1)>" in window.texts(".answer")[0]
    assert "2*3*4" in window.texts(".answer")[0]
    assert window.texts(".answer code") == ["<b>code</b>"]
    assert window.log() == []


@pytest.mark.parametrize("width", [320, 390, 1024])
def test_every_width_and_both_schemes(window: Browser, fakes: Nodes, width: int) -> None:
    open_page(window, fakes[1][0], width)
    ask(window, "a-word-without-any-space-" * 12)
    window.wait(IDLE, "the answer is there")
    # A phone's browser widens its window to what sticks out: so not against that.
    assert window.run("return document.documentElement.scrollWidth") <= width, "nothing sticks out"
    window.run("document.getElementById('tune').click()")
    inside = """
        const box = document.getElementById('settings').getBoundingClientRect();
        return [...document.querySelectorAll('#settings *')].map((e) => e.getBoundingClientRect())
          .every((r) => box.left >= 0 && box.right <= arguments[0] && r.left >= box.left && r.right <= box.right);
    """
    assert window.run(inside, width), "nor of the settings"
    window.type(ESCAPE)
    button = window.run("const r = document.getElementById('send').getBoundingClientRect(); return [r.right, r.bottom]")
    room = window.run("return [innerWidth, innerHeight]")
    assert all(b <= r for b, r in zip(button, room, strict=True)), "the button is in reach"

    def brightness() -> int:
        back = window.run("return getComputedStyle(document.body).backgroundColor")
        return sum(int(v) for v in back[4:-1].split(","))

    until(lambda: brightness() < 380, "dark")
    window.look(width, 860, "light")
    until(lambda: brightness() > 380, "light")


def test_without_the_key_nothing_is_seen(window: Browser, own: Swarm) -> None:
    node = own.start("--join", "none", "--backend", "fake", "--name", "attic", CONCLAVE_API_KEY="open sesame")
    own.ready(node)
    window.look(1280, 860, "dark")
    window.go(f"http://{node.http_address}/")
    window.wait("return document.getElementById('door').open", "it asks for the key")
    seen = window.run("return document.body.textContent")
    assert "attic" not in seen
    assert "fake" not in seen
    window.type("wrong" + ENTER)
    window.wait("return document.getElementById('door').open", "it asks again")
    window.run("document.getElementById('key').value = ''")
    window.run("document.getElementById('key').focus()")
    window.type("open sesame" + ENTER)
    window.wait("return document.querySelector('#where').textContent.includes('attic')", "it opens")
    ask(window, "hello")
    window.wait("return document.querySelector('.answer')?.textContent.includes('echo: hello')", "it answers")
