"""The page in a real browser: a question, its streamed answer, the lens by keyboard and by tap, and hostile texts."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from gptcli import LanguageModel
from gptcli.serve.guards import Access
from tests.cli.scripted import Script, follow
from tests.serve.browser import PROGRAM, Browser, browsing
from tests.serve.conftest import Running, serving, until

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium here")
HOSTILE = (
    '<img src=x onerror="window.taken=1"><script>window.taken=1</script><svg onload=window.taken=1>\n\n'
    '[a](javascript:window.taken=1) [b](https://b.example/"onclick=window.taken=1) ![c](https://c.example/c.png)\n\n'
    "```html\n<iframe srcdoc='<script>parent.taken=1</script>'></iframe>\n```\n\n|<b>a</b>|b|\n|-|-|\n|<i>c</i>|d|\n"
)


# Does not answer; what asks can only be stopped.
SILENT = """window.fetch = (path, { signal }) => new Promise((_, fail) =>
    signal.addEventListener("abort", () => fail(new DOMException("", "AbortError")))), null"""


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def browser(opened: Browser) -> Iterator[Browser]:
    """The browser as if it were new; nothing may go wrong in it."""
    opened.resize(1000, 700)
    opened.problems.clear()
    yield opened
    assert opened.problems == []


def fresh(browser: Browser, server: Running, **settings: object) -> None:
    """The page with nothing kept."""
    browser.load(f"http://127.0.0.1:{server.port}/")
    browser.run(f"localStorage.clear(), localStorage.setItem('gptcli.settings', {json.dumps(json.dumps(settings))})")
    browser.load(f"http://127.0.0.1:{server.port}/")
    browser.until("document.querySelector('#model').value")


def send(browser: Browser, text: str) -> None:
    """Types a text and Enter."""
    browser.run("document.querySelector('#prompt').focus()")
    browser.write(text)
    browser.key("Enter")


def asked(browser: Browser, question: str) -> str:
    """Asks, and waits for the whole answer."""
    answers = int(browser.run("document.querySelectorAll('article.assistant').length"))
    send(browser, question)
    browser.until(f"document.querySelectorAll('article.assistant').length > {answers} && !running")
    return str(browser.run("current.messages.at(-1).content"))


def test_a_question_is_answered_edited_tried_again_and_kept(browser: Browser, server: Running) -> None:
    fresh(browser, server, max_tokens=6)
    said = asked(browser, "In a small town")
    assert said
    assert browser.run("document.querySelector('#context span').textContent").endswith("of 256 tokens")
    browser.click("article.assistant .actions button:nth-child(3)")
    browser.until("document.querySelector('#seen').open")
    assert "In a small town" in browser.run("document.querySelector('#seen .pieces').textContent")
    assert browser.run("document.querySelector('#seen .control').textContent") == "<|im_start|>"
    browser.key("Escape")
    browser.click("article.user .actions button:nth-child(2)")
    browser.run("document.activeElement.value = ''")
    browser.write("The clockmaker")
    browser.key("Enter")
    browser.until("current.messages.length === 2 && !running && current.messages[0].content === 'The clockmaker'")
    edited = browser.run("current.messages[1].content")
    browser.click("article.assistant .actions button:nth-child(2)")
    browser.until("running === null && current.messages.length === 2 && current.messages[1].content")
    assert browser.run("current.messages[1].content") == edited  # the tests' server is greedy
    browser.load(f"http://127.0.0.1:{server.port}/")
    browser.until("document.querySelector('article.user .said')?.textContent === 'The clockmaker'")
    assert browser.run("document.querySelectorAll('#conversations li').length") == 1
    browser.click("#conversations li button:nth-child(2)")
    browser.until("!document.querySelector('article')")


def test_the_lens_opens_by_keyboard_and_goes_on_from_another_token(browser: Browser, server: Running) -> None:
    fresh(browser, server, max_tokens=8)
    asked(browser, "In a small town")
    before = browser.run("current.messages[1].tokens.map((token) => token.id)")
    browser.click("#lens")
    assert browser.run("document.querySelectorAll('.lens .token').length") == len(before)
    browser.run("document.querySelector('.lens .token').focus()")
    browser.key("ArrowRight", "ArrowRight", "Enter")
    assert browser.run("document.querySelectorAll('#alternatives button').length") == 8
    browser.key("ArrowDown", "ArrowDown", "Escape")
    assert browser.run("document.activeElement === document.querySelectorAll('.lens .token')[2]")
    wanted = browser.run("current.messages[1].tokens[2].top[1].id")
    browser.key("Enter", "ArrowDown", "Enter")
    browser.until("!running && current.messages[1].tokens[2].picked")
    after = browser.run("current.messages[1].tokens.map((token) => token.id)")
    assert after[:3] == [*before[:2], wanted]
    assert len(after) == 3 + 8
    assert browser.run("document.querySelector('.lens .chosen').textContent === text([current.messages[1].tokens[2]])")
    browser.run("pick(current.messages[1], 0, {...current.messages[1].tokens[0], id: 2})")  # which ends an answer
    browser.until("!running && document.querySelector('#problem').textContent.includes('ends an answer')")
    assert browser.run("current.messages[1].tokens.map((token) => token.id)") == after
    browser.problems.clear()  # Chromium logs status 400


def test_the_lens_opens_by_tap_on_a_narrow_screen(browser: Browser, server: Running) -> None:
    browser.resize(390, 760, touch=True)
    fresh(browser, server, max_tokens=6, lens=True)
    asked(browser, "In a small town")
    assert browser.run("document.documentElement.scrollWidth") <= 390
    browser.tap(".lens .token:nth-child(4)")
    browser.until("!document.querySelector('#alternatives').hidden")
    box = browser.run("document.querySelector('#alternatives').getBoundingClientRect().toJSON()")
    assert box["left"] >= 0 and box["right"] <= 390
    wanted = browser.run("current.messages[1].tokens[3].top[2].id")
    browser.tap("#alternatives button:nth-of-type(3)")
    browser.until(f"!running && current.messages[1].tokens[3]?.id === {wanted}")


def test_a_stopped_answer_stays(browser: Browser, tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    follow(Script(pieces=["word "] * 2000, piece_s=0.01), monkeypatch.setattr)
    with serving(tiny) as server:
        fresh(browser, server)
        send(browser, "hi")
        browser.until("document.querySelector('article.assistant .said')?.textContent.includes('word word')")
        browser.click("#stop")
        browser.until("!running && document.querySelector('#stop').hidden")
        until(lambda: server.service.runner.waiting == 0)
        assert browser.run("current.messages[1].content").startswith("word word")


def test_text_of_a_model_and_of_a_user_is_text_and_nothing_else(
    browser: Browser, tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow(Script(pieces=["<think>", "<b>thought</b>", "</think>", *HOSTILE]), monkeypatch.setattr)
    monkeypatch.setattr(tiny.template, "source", tiny.template.source + "{# <think> #}")
    with serving(tiny) as server:
        fresh(browser, server)
        asked(browser, HOSTILE[:100])
        browser.load(f"http://127.0.0.1:{server.port}/")  # and as it is read from the browser's store
        browser.until("document.querySelector('article.assistant .said p')")
        said = browser.run("document.querySelector('article.assistant .said').textContent")
        names = "[...document.querySelectorAll('article *')].map((each) => each.localName)"
        made = set(browser.run(names))
        links = browser.run("[...document.querySelectorAll('article a')].map((each) => [each.href, each.rel])")
        assert browser.run("window.taken") is None
    assert '<img src=x onerror="window.taken=1"><script>' in said and "<b>thought</b>" in said
    assert "[a](javascript:window.taken=1)" in said
    assert made <= set("a button code details div h2 p pre summary table td th tr".split())
    rel = "noopener noreferrer"
    assert links == [["https://b.example/%22onclick=window.taken=1", rel], ["https://c.example/c.png", rel]]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("```ls -la``` lists files\n\nmore", [["p", "ls -la lists files"], ["p", "more"]]),
        ("```python title\na\n``` b\n````\nc", [["pre", "python title", "a\n``` b"], ["p", "c"]]),
        ("~~~ a ~~~\nb\n~~~~ \nc", [["pre", "a ~~~", "b"], ["p", "c"]]),
        ("- a\n1. b\n2. c\n* d", [["ul", "a"], ["ol", "bc"], ["ul", "d"]]),
        ("|" * 300 + "a\n|-|\n|b|", [["p", "|" * 300 + "a\n|-|\n|b|"]]),
    ],
)
def test_nothing_of_a_text_is_left_out(browser: Browser, server: Running, text: str, shown: list[list[str]]) -> None:
    fresh(browser, server)
    parts = "[each.localName, ...(each.dataset.info ? [each.dataset.info] : []), each.textContent]"
    assert browser.run(f"markdown({json.dumps(text)}).map((each) => {parts})") == shown


@pytest.mark.parametrize("address", ["https://a.example:99999/", "https://\u202egnp.exe.example/", "http:///"])
def test_an_address_that_leads_nowhere_is_no_link(browser: Browser, server: Running, address: str) -> None:
    fresh(browser, server)
    assert browser.run(f"markdown({json.dumps(f'[a]({address}) b')})[0].innerHTML") == f"[a]({address}) b"


LISTS = "- one\n  - two\n    - three\n  - four\n\n- five\n\n1. a\n   1. b\n2. c\n\n   - d\n   - e\n"


def test_lists_are_as_deep_as_they_are_written(browser: Browser, server: Running) -> None:
    fresh(browser, server)
    script = f"""(() => {{
        const outline = (each) => [...each.children].flatMap((child) => child.matches("ul, ol, li")
            ? [child.matches("li") ? child.firstChild.data.trim() : outline(child), ...(child.matches("li")
                ? [...child.children].map(outline) : [])] : []);
        return markdown({json.dumps(LISTS)}).map(outline);
    }})()"""
    assert browser.run(script) == [["one", ["two", ["three"], "four"]], ["five"], ["a", ["b"], "c"], ["d", "e"]]


def test_who_reads_elsewhere_stays_there(browser: Browser, server: Running) -> None:
    fresh(browser, server, max_tokens=4)
    asked(browser, "a\n" * 60)
    top = "document.querySelector('main').scrollTop"
    assert browser.run(top) > 100  # an answer is in sight
    browser.run(f"{top} = 50")
    browser.run("draw()")
    assert browser.run(top) == 50
    browser.run("redraw(document.querySelector('article.assistant'), current.messages[1])")
    assert browser.run(top) == 50
    asked(browser, "And?")
    assert browser.run("atEnd()")


def test_a_long_conversation_is_laid_out_once(browser: Browser, server: Running) -> None:
    fresh(browser, server)
    script = """(() => {
        current.messages = Array.from({length: 200}, (_, n) => ({role: n % 2 ? "assistant" : "user", content: `${n}`}));
        const main = document.querySelector("main");
        const { get } = Object.getOwnPropertyDescriptor(Element.prototype, "scrollHeight");
        let asked = 0;
        Object.defineProperty(main, "scrollHeight", {get() { asked += 1; return get.call(main); }});
        draw();
        return [document.querySelectorAll("article").length, asked <= 2];
    })()"""
    assert browser.run(script) == [200, True]


def test_the_page_can_run_and_fetch_nothing_from_elsewhere(browser: Browser, server: Running) -> None:
    fresh(browser, server)
    answer = server.ask("GET", "/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert answer.headers["x-frame-options"] == "DENY"
    assert b"http://" not in answer.data and answer.data.count(b"https://") == 0
    refused = """new Promise((done) => {
        addEventListener("securitypolicyviolation", (event) => done(event.effectiveDirective), { once: true });
        %s
    })"""
    attempts = {
        "require-trusted-types-for": "try { document.body.setAttribute('onclick', ''); } catch {}",
        "connect-src": "fetch('http://127.0.0.1:9/').catch(() => {});",
        "img-src": "document.body.append(Object.assign(new Image(), { src: '/health' }));",
    }
    for directive, attempt in attempts.items():
        assert browser.run(refused % attempt) == directive
    browser.problems.clear()  # each of these was one


def test_what_another_window_keeps_stays_when_this_one_keeps(browser: Browser, server: Running) -> None:
    fresh(browser, server, max_tokens=2)
    asked(browser, "mine")
    browser.run("""
        localStorage.setItem("gptcli.conversation.9", '{"title": "other", "messages": []}'),
        dispatchEvent(new StorageEvent("storage", {key: "gptcli.conversation.9"}))
    """)
    asked(browser, "again")
    kept = "storedConversations().map((each) => [each.title, each.messages.length])"
    assert browser.run(kept) == [["other", 0], ["mine", 4]]
    assert browser.run("document.querySelector('#conversations ul').textContent") == "other✕mine✕"
    browser.run("""
        localStorage.setItem("gptcli.settings", '{"system": "theirs", "max_tokens": 2}'),
        dispatchEvent(new StorageEvent("storage", {key: "gptcli.settings"}))
    """)
    asked(browser, "and?")
    assert "theirs" in browser.run("localStorage.getItem('gptcli.settings')")


def test_two_windows_that_go_on_from_one_conversation_lose_nothing(browser: Browser, server: Running) -> None:
    fresh(browser, server, max_tokens=2)
    asked(browser, "one")
    # What the other window keeps, as it finds it, when it has asked too.
    others = """storedConversations().map(({id, messages}) => (
        localStorage.setItem(CONVERSATION + id, JSON.stringify(
            {messages: [...messages, ...["theirs", "x"].map((content) => ({role: "user", content}))]})),
        dispatchEvent(new StorageEvent("storage", {key: CONVERSATION + id})))), null"""
    browser.run(others)
    assert browser.run("current.messages.map((each) => each.content).slice(2)") == ["theirs", "x"]
    assert browser.run("document.querySelectorAll('article').length") == 4
    browser.run(SILENT)
    browser.run(f"send('mine'), {others}")
    browser.run("running.stop()")
    browser.until("!running")
    kept = "storedConversations().map((each) => each.messages.map(({content}) => content).slice(4))"
    assert browser.run(kept) == [["mine"], ["theirs", "x"]]


def test_a_page_that_is_left_amid_an_answer_keeps_what_has_come(
    browser: Browser, tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow(Script(pieces=["word "] * 2000, piece_s=0.01), monkeypatch.setattr)
    with serving(tiny) as server:
        fresh(browser, server)
        send(browser, "hi")
        browser.until("document.querySelector('article.assistant .said')?.textContent.includes('word word')")
        browser.load(f"http://127.0.0.1:{server.port}/")
        browser.until("document.querySelector('article.user .said')?.textContent === 'hi'")
        assert browser.run("current.messages[1].content").startswith("word word")
        browser.run(f"{SILENT}, again(1), dispatchEvent(new PageTransitionEvent('pagehide'))")
        assert browser.run("storedConversations()[0].messages[1].content").startswith("word word")


@pytest.mark.parametrize("error", ["QuotaExceededError", "SecurityError"])
def test_a_browser_that_keeps_nothing_is_said_to(browser: Browser, server: Running, error: str) -> None:
    fresh(browser, server, max_tokens=2)
    browser.run(f"Storage.prototype.setItem = () => {{ throw new DOMException('no room', '{error}') }}, null")
    assert asked(browser, "hi")
    assert "keeps nothing: no room" in browser.run("document.querySelector('#problem').textContent")
    assert browser.run("document.querySelector('#stop').hidden && document.querySelectorAll('article').length") == 2


def test_the_page_answers_where_the_browser_forbids_it_to_keep_anything(browser: Browser, server: Running) -> None:
    forbidden = "{ get() { throw new DOMException('forbidden', 'SecurityError'); } }"
    script = f"for (const name of ['localStorage', 'sessionStorage']) Object.defineProperty(window, name, {forbidden})"
    added = browser.call("Page.addScriptToEvaluateOnNewDocument", source=script)["identifier"]
    try:
        browser.load(f"http://127.0.0.1:{server.port}/")
        browser.until("document.querySelector('#model').value")
        browser.run("settings.max_tokens = 2")
        assert asked(browser, "one") and asked(browser, "two")
        assert "keeps nothing: forbidden" in browser.run("document.querySelector('#problem').textContent")
    finally:
        browser.call("Page.removeScriptToEvaluateOnNewDocument", identifier=added)


@pytest.mark.parametrize(
    "text",
    [">" * 50_000, "> " * 50_000, "`a` " * 150_000, "a\n\n" * 150_000, "- a\n" + "  b\n" * 150_000]
    + ["[" * 300_000, "a" + "`" * 300_000, "[a](https://" * 30_000, "|\n" + "-" * 300_000 + "x"]
    + ["|" * 100_000 + "\n|-|\n"],
    ids=lambda text: text[:12],
)
def test_no_text_of_a_model_is_too_much_to_draw(browser: Browser, server: Running, text: str) -> None:
    fresh(browser, server)
    kept = {"title": "long", "messages": [{"role": "assistant", "content": text}]}
    browser.run(f"localStorage.setItem('gptcli.conversation.1', {json.dumps(json.dumps(kept))})")
    browser.load(f"http://127.0.0.1:{server.port}/")
    browser.until("document.querySelector('#model').value")
    assert browser.run("document.querySelector('article.assistant .said').textContent.length") > 1000


@pytest.mark.parametrize(
    ("name", "value"),
    [("conversation.1", text) for text in ("{", "{}", "[]", '{"messages": [null]}', '{"messages": [], "used": "x"}')]
    + [
        ("conversation.1", '{"messages": [{"role": "assistant", "content": "", "tokens": ' + tokens + "}]}")
        for tokens in ('"text"', '[{"id": 1}]', '[{"id": 1, "bytes": [97], "logprob": -1, "top": [null]}]')
    ]
    + [("settings", "nonsense"), ("settings", "[1]")],
)
def test_the_page_begins_anew_where_what_is_kept_cannot_be_read(
    browser: Browser, server: Running, name: str, value: str
) -> None:
    fresh(browser, server, max_tokens=2, lens=True)
    browser.run(f"localStorage.setItem('gptcli.{name}', {json.dumps(value)})")
    browser.load(f"http://127.0.0.1:{server.port}/")
    browser.until("document.querySelector('#model').value")
    assert "cannot be read" in browser.run("document.querySelector('#problem').textContent")
    browser.run("settings.max_tokens = 2")
    assert asked(browser, "one")


@pytest.mark.parametrize("question", ["send('new')", "again(1)", "again(0, 'edited')"])
def test_an_answer_without_a_token_leaves_other_conversations(browser: Browser, server: Running, question: str) -> None:
    fresh(browser, server, max_tokens=2)
    asked(browser, "one")
    browser.run("open(fresh()), null")
    asked(browser, "two")
    before = browser.run("conversations.map((each) => each.messages.map((message) => message.content))")
    browser.run(SILENT)
    browser.run(f"{question}, open(conversations[1]), null")
    browser.until("!running")
    after = browser.run("conversations.map((each) => each.messages.map((message) => message.content))")
    assert after == [before[0] + (["new"] if "send" in question else []), before[1]]
    assert browser.run("document.querySelectorAll('article').length") == 2


def test_a_conversation_deleted_during_its_answer_stays_deleted(browser: Browser, server: Running) -> None:
    fresh(browser, server)
    browser.run(SILENT)
    browser.run("send('new'), remove(conversations[0] ?? current), null")
    browser.until("!running")
    assert browser.run("[conversations.length, storedConversations().length]") == [0, 0]


@pytest.mark.parametrize("answering", [True, False])
def test_a_conversation_deleted_in_another_window_stays_deleted(
    browser: Browser, server: Running, answering: bool
) -> None:
    fresh(browser, server, max_tokens=2)
    asked(browser, "one")
    if answering:
        browser.run(f"{SILENT}, send('two'), null")
    browser.run("""
        localStorage.removeItem(CONVERSATION + current.id),
        dispatchEvent(new StorageEvent("storage", {key: CONVERSATION + current.id})), running?.stop(), null
    """)
    browser.until("!running")
    browser.run("keep(), null")
    assert browser.run("[conversations.length, storedConversations().length]") == [0, 0]
    if not answering:
        assert asked(browser, "three")  # in it, so it is wanted after all
        assert browser.run("storedConversations().map((each) => each.messages.at(-2).content)") == ["three"]


def test_windows_that_keep_at_the_same_moment_lose_nothing(browser: Browser, server: Running) -> None:
    fresh(browser, server, max_tokens=2)
    asked(browser, "mine")
    # The other window has kept a conversation, and this one has not yet been told.
    browser.run("""localStorage.setItem("gptcli.conversation.9", '{"title": "other", "messages": []}')""")
    asked(browser, "again")
    assert browser.run("storedConversations().map((each) => each.title)") == ["other", "mine"]


@pytest.mark.parametrize(
    ("fetched", "problem"),
    [
        ("Promise.resolve(new Response('<html>', {status: 502, statusText: 'Bad Gateway'}))", "502 Bad Gateway"),
        ("Promise.reject(new TypeError('Failed to fetch'))", "The server does not answer."),
    ],
)
def test_a_server_that_is_gone_is_said_to_be(browser: Browser, server: Running, fetched: str, problem: str) -> None:
    fresh(browser, server)
    browser.run(f"window.fetch = () => {fetched}, null")
    send(browser, "hi")
    browser.until(f"document.querySelector('#problem').textContent.includes({problem!r})")
    assert browser.run("current.messages.map((each) => each.content)") == ["hi"]  # what was typed stays


def test_a_key_is_asked_for_and_errors_are_shown(browser: Browser, tiny: LanguageModel) -> None:
    with serving(tiny, access=Access(key="secret")) as server:
        browser.load(f"http://127.0.0.1:{server.port}/")
        browser.until("document.querySelector('#options').open")
        browser.run("document.querySelector('[name=key]').focus()")
        browser.write("secret")
        browser.key("Tab")
        browser.until("document.querySelector('#model').value === 'tiny'")
        browser.key("Escape")
        browser.problems.clear()  # Chromium logs status 401 and 400
        send(browser, "x" * 2000)
        browser.until("document.querySelector('#problem').textContent.includes('does not fit')")
        browser.problems.clear()
