"""Draws random texts on the server's page: `python -m tests.serve.page_texts --seed S --count N`, with a Chromium.

Each text is Markdown, HTML, addresses and odd characters, within each other and cut. The page draws it as a user's, as
a model's and as its thoughts. It must run no script, ask no other host, and make no element, attribute or scheme other
than its own. The user's text and the thoughts must be there whole, and every letter of the model's text.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import gptcli
from tests.serve.browser import Browser, browsing
from tests.serve.conftest import serving
from tests.tiny import make_model
from tests.trials import Outcome, main, tried

# How texts are written: each ⟨name⟩ stands for one of these.
_FORMS = {
    "text": ["⟨block⟩", "⟨block⟩\n⟨text⟩", "⟨block⟩\n\n⟨text⟩"],
    "block": [
        *["⟨line⟩", "⟨line⟩\n⟨line⟩\n⟨line⟩", "---", "## ⟨line⟩", "#######⟨line⟩", "> ⟨block⟩", "  >⟨block⟩"],
        *["- ⟨block⟩", "1. ⟨block⟩\n7) ⟨part⟩", "9999999999. ⟨line⟩\n   * ⟨block⟩", "-\t⟨line⟩\n0. ⟨part⟩", "+ ⟨text⟩"],
        *["```⟨word⟩ ⟨part⟩\n⟨line⟩\n```", "~~~\n⟨line⟩\n```x\n~~~", " ````js a=1\n```\n⟨text⟩\n", "  ```\n⟨html⟩"],
        *["|⟨part⟩|⟨part⟩|\n|-|:-:|\n|⟨part⟩|⟨part⟩|⟨part⟩|\n|⟨part⟩", "⟨part⟩|\n-|\n|⟨part⟩|", "|x" * 150 + "\n-|"],
        *["⟨long⟩", "⟨line⟩ ⟨line⟩"],
    ],
    "line": ["⟨part⟩", "⟨part⟩ ⟨line⟩", "⟨link⟩ ⟨line⟩", "⟨word⟩ ⟨line⟩", "⟨word⟩ ⟨part⟩⟨part⟩ ⟨word⟩"],
    "part": [
        *["⟨html⟩", "⟨odd⟩", "⟨word⟩", "⟨link⟩", "⟨url⟩", "<⟨url⟩>"],
        *["`⟨part⟩`", "```⟨word⟩````", "*⟨part⟩*", "**⟨line⟩**", "***⟨word⟩**"],
    ],
    "link": [
        *["[⟨word⟩](⟨url⟩)", "![⟨part⟩](⟨url⟩)", "[⟨html⟩](https://⟨url⟩)", "[**a** ⟨word⟩](http://⟨part⟩)"],
        *["[[⟨word⟩](⟨url⟩ 'title')", "[*⟨part⟩](⟨url⟩))", "[](⟨url⟩", "[`⟨word⟩](https://a.example/⟨word⟩)"],
    ],
    "url": [f"⟨scheme⟩{path}" for path in ("taken=1", "evil.example/⟨word⟩", "b.example/(x)", "⟨html⟩", "a b", "")],
    "scheme": [
        *["javascript:", "JaVaScRiPt:", "java\tscript:", "java\nscript:", "java&Tab;script:", "&#106;avascript:"],
        *["\1javascript:", " javascript:", "javascript\u200b:", "feed:javascript:", "vbscript:", "data:text/html,"],
        *["blob:", "file:///", "//", "\\\\", "http:\\\\", "https:/", "http:", "https://", "HTTPS://", "ftp://"],
        *["mailto:", "chrome://", "about:", "view-source:", "intent://", "ws://", "https://user@", "https://a.example@"],
        *["https://xn--80ak6aa92e.com/", "https://аррӏе.com/", "https://a\u202ecom.evil\u202c/", "https://\u200bx.com/"],
        *["https://[::1]/", "http://127.0.0.1:9/", "/v1/", "?", "#", "https://x.example/\"onclick=window.taken=1>"],
    ],
    "html": [
        *["<img src=x onerror=window.taken=1>", "<script>window.taken=1</script>", "<svg/onload=window.taken=1>"],
        *["<iframe src=javascript:parent.taken=1>", "<a href=javascript:window.taken=1>x</a>", "</article><h1>"],
        *["<style>@import 'http://evil.example/x'</style>", "<link rel=stylesheet href=http://evil.example>", "<!--"],
        *["<meta http-equiv=refresh content='0;url=http://evil.example'>", "<base href=http://evil.example/>", "-->"],
        *["<form action=http://evil.example><input autofocus onfocus=window.taken=1>", "<embed src=//evil.example>"],
        *["<math><mtext></form><form><mglyph><style></math><img src onerror=window.taken=1>", "&lt;script&gt;"],
        *["<details open ontoggle=window.taken=1>", "<video><source onerror=window.taken=1>", "<template>", "&#0;"],
    ],
    "odd": [
        *["\u202e", "\u202d\u2066", "\u200b" * 50, "\u200d", "\ufeff", "\u00ad" * 20, "Z\u0351\u036b" * 30, "\u2028"],
        *["\0", "\x1b[31m", "\7\b\x7f\x9b", "\r", "\r\n", "\t", "\v\f", "\U000e0041" * 5, "\uffff", "ﷺ" * 20, "שלום"],
    ],
    "word": "small clock 3.14 x_1 2*3*4 a**b C# <- | || ~~s~~ $x^2$ \\(x\\) `` ` *** _ [ ] ( ! > # 1. - --- &".split(),
    "long": ["a" * 90_000, "#" * 9_000, ">" * 9_000, "*a" * 3000, "[a](" * 5000, "$" * 9_000, "`" * 9_000 + "a"],
}  # fmt: skip
_MARKS = "*_`[]()<>#|-+.!\\~$&\n\t 1ab\"'=:/@"
_STRANGE = (
    "Page.javascriptDialogOpening Page.windowOpen Page.frameAttached Page.frameRequestedNavigation Page.frameNavigated "
    "Page.downloadWillBegin Network.webSocketCreated"
).split()

# Draws a text; returns what is wrong, and the model's text as it can be read, with its addresses.
_DRAW = """async (content) => {
  settings.lens = false;
  const [asked, said] = ["user", "assistant"].map((role) => ({ role, content }));
  current.messages = [asked, said, { role: "assistant", content: "x", thoughts: content }];
  draw();
  await new Promise((done) => setTimeout(done, 20));
  const elements = "a article blockquote button code details div em h2 h3 hr li ol p pre small strong summary "
    + "table td th tr ul";
  const attributes = "class data-info href open rel start tabindex target title", wrong = [];
  for (const each of document.querySelectorAll("#transcript *")) {
    if (!elements.split(" ").includes(each.localName)) wrong.push(`element ${each.localName}`);
    for (const { name } of each.attributes) if (!attributes.split(" ").includes(name)) wrong.push(`attribute ${name}`);
    if (each.localName !== "a") continue;
    if (!["http:", "https:"].includes(each.protocol)) wrong.push(`scheme ${each.protocol}`);
    if (each.rel !== "noopener noreferrer" || each.target !== "_blank") wrong.push("a link that tells whence");
    if (each.title !== each.getAttribute("href")) wrong.push("a link that hides whither");
  }
  const [user, model, thinking] = document.querySelectorAll("#transcript article .said");
  if (document.querySelectorAll("#transcript article").length !== 3) wrong.push("more or fewer messages");
  if (user.textContent !== content) wrong.push("the user's text is another");
  if ((thinking.querySelector("details div")?.textContent ?? "") !== content) wrong.push("the thoughts are others");
  if (window.taken !== undefined) wrong.push("a script ran");
  if (document.documentElement.scrollWidth > innerWidth + 1) wrong.push("the page is wider than the window");
  const read = (node) => node.data
    ?? [node.dataset.info, ...[...node.childNodes].map(read), node.getAttribute("href")].join("");
  return { wrong, read: read(model), links: document.querySelectorAll("#transcript a").length };
}"""


def _written(dice: random.Random, form: str = "text", depth: int = 0) -> str:
    """A text of a form; what has several lines may be indented or quoted in them."""

    def part(match: re.Match[str]) -> str:
        margin = dice.choice(["", " " * match.start(), "> "])
        return _written(dice, match[1], depth + 1).replace("\n", f"\n{margin}")

    return re.sub("⟨(.*?)⟩", part, dice.choice(_FORMS[form])) if depth < 16 else "x"


def _noise(dice: random.Random) -> str:
    marks = dice.choices(_MARKS, k=dice.randrange(300))
    return "".join(marks + [chr(dice.randrange(0x20000)) for _ in marks[::3]])


def _letters(text: str) -> str:
    """The letters of a text: what Markdown is written with, and the numbers of lists, is left out."""
    return re.sub(r"[\W\d_]", "", text)


def _trial(browser: Browser, dice: random.Random) -> str:
    text = _noise(dice) if dice.random() < 0.1 else _written(dice)
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    browser.problems.clear()
    browser.events.clear()
    drawn = browser.run(f"({_DRAW})({json.dumps(text)})")
    asked = [event["params"]["request"]["url"] for event in browser.events if event["method"].endswith("BeSent")]
    strange = [event for event in browser.events if event["method"] in _STRANGE]
    wrong = [*drawn["wrong"], *browser.problems, *asked, *strange]
    lost = _letters(text) != _letters(drawn["read"])
    assert not wrong and not lost, f"{text!r}: {wrong}" + f", read as {drawn['read']!r}" * lost
    return "with links" if drawn["links"] else "without links"


def outcomes(seeds: Iterable[int], directory: Path) -> Iterator[Outcome]:
    """What became of each text. directory: for a model, and the browser's profile."""
    lm = gptcli.load(make_model(directory / "tiny"), device="cpu", dtype="fp32")
    with serving(lm) as server, browsing(directory / "profile") as browser:
        browser.call("Network.enable")
        browser.resize(1000, 700)
        browser.load(f"http://127.0.0.1:{server.port}/")
        browser.until("document.querySelector('#model').value")
        yield from tried(seeds, lambda dice: _trial(browser, dice))


if __name__ == "__main__":
    sys.exit(main(__doc__, outcomes))
