"""Draws probabilities as an HTML page: no script, nothing fetched, light and dark, alternatives on hover or tap."""

from __future__ import annotations

from collections.abc import Sequence

from gptcli.cli.probabilities.picture_content import DARK, LIGHT, Passage, bars, facts_of, markup, name_of
from gptcli.cli.probabilities.shaded_tokens import STEPS, ShadedGroup, ShadedToken, step_of

_COLOURS = f"""
:root {{ color-scheme: light dark; {LIGHT} --card: #ffffff; }}
@media (prefers-color-scheme: dark) {{ :root {{ {DARK} --card: #20252b; }} }}
{"".join(f".s{step.number} {{ background: {step.colour}; color: {step.ink}; }}" for step in STEPS)}
"""
# Classes have one letter, since every token repeats them: t token, s0 to s4 its shade, u underlined, n newline's mark,
# k control token, c card; in a card h heading, r row, d drawn token's row, b bar.
_STYLE = """
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2.5rem 1.5rem 14rem; max-width: 56rem; background: var(--page); color: var(--ink);
  font: 1.0625rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif;
  print-color-adjust: exact; -webkit-print-color-adjust: exact;
}
h1 { margin: 0 0 .75rem; font-size: 1rem; font-weight: 600; overflow-wrap: anywhere; }
ul, dl { display: flex; flex-wrap: wrap; gap: .5rem; margin: 0; padding: 0; list-style: none; }
li { padding: .1rem .6rem; border-radius: .3rem; font-size: .8125rem; font-variant-numeric: tabular-nums; }
li:first-child { padding-left: 0; }
dl { gap: .5rem 2rem; margin-top: 1.5rem; }
dl div { display: flex; flex-direction: column-reverse; }
dt { color: var(--faint); font-size: .8125rem; }
dd { margin: 0; font-size: 1.5rem; font-weight: 600; line-height: 1.2; font-variant-numeric: tabular-nums; }
section { position: relative; margin-top: 2.5rem; }
.text { position: relative; margin: 0; font-size: 1.1875rem; line-height: 2; white-space: pre-wrap; }
.text { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.text { overflow-wrap: anywhere; tab-size: 4; }
.t {
  margin: 0 .04em; padding: .08em .1em .2em; border-radius: .22em; outline: none; cursor: default;
  -webkit-box-decoration-break: clone; box-decoration-break: clone;
}
.t:hover, .t:focus { box-shadow: 0 0 0 2px var(--page), 0 0 0 4px var(--ink); }
.u { text-decoration: underline 2px; text-underline-offset: .12em; text-decoration-skip-ink: none; }
.n { opacity: .55; font-size: .8em; }
.k { border: 1px dashed var(--faint); font-size: .8em; }
.c {
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif;
  display: none; position: absolute; left: 0; z-index: 2; width: min(22rem, 100%); padding: .75rem .9rem;
  border: 1px solid var(--edge); border-radius: .6rem; background: var(--card); color: var(--ink);
  box-shadow: 0 .5rem 1.75rem #0005; font-size: .875rem; line-height: 1.5; white-space: normal; text-decoration: none;
}
.t:hover > .c, .t:focus > .c { display: block; }
.t:hover > .c { z-index: 3; }
@supports (position-area: bottom) and (anchor-scope: --token) {
  .t { anchor-name: --token; anchor-scope: --token; }
  .c {
    left: auto; margin: .45rem 0; width: 22rem; max-width: 90vw;
    position-anchor: --token; position-area: bottom span-right; position-try-fallbacks: flip-inline, flip-block;
  }
}
.h { display: block; margin-bottom: .35rem; color: var(--faint); }
.h b { color: var(--ink); }
.r { display: grid; grid-template-columns: 8.5rem 1fr 3.2rem; align-items: center; gap: .6rem; }
.r > :first-child { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.r > :first-child { font-family: ui-monospace, "DejaVu Sans Mono", monospace; }
.r > :last-child { text-align: right; font-variant-numeric: tabular-nums; }
.d { font-weight: 700; }
.b { height: .6rem; border-radius: .3rem; background: var(--bar); overflow: hidden; }
.b > i { display: block; height: 100%; min-width: 2px; background: #21918c; }
"""


def page(title: str, passages: Sequence[Passage]) -> str:
    """The whole page as HTML."""
    legend = "".join(f'<li class="{_classes(step.least)}">{step.label}</li>' for step in STEPS)
    body = "".join(map(_section, passages))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{markup(title)}</title>
<style>{_COLOURS}{_STYLE}</style>
</head>
<body>
<h1>{markup(title)}</h1>
<ul aria-label="probability of a token"><li>probability</li>{legend}</ul>
{body}</body>
</html>
"""


def _section(passage: Passage) -> str:
    heading = f"<h1>{markup(passage.title)}</h1>" if passage.title else ""
    figures = "".join(f"<div><dt>{markup(name)}</dt><dd>{markup(value)}</dd></div>" for name, value in passage.figures)
    tokens = "".join(map(_token_group, passage.groups))
    return (
        f'<section>{heading}<p class="text">{markup(passage.lead)}{tokens}</p>'
        f"{f'<dl>{figures}</dl>' if figures else ''}</section>\n"
    )


def _token_group(group: ShadedGroup) -> str:
    probability = group.probability
    classes = "t" if probability is None else f"t {_classes(probability)}"
    classes += " k" if group.look.control else ""
    cards = "".join(map(_card, group.tokens))
    # The space before a word stays outside the shade, so that lines break there; a token of blanks is all shade.
    space, text = (" ", group.text[1:]) if group.text.startswith(" ") and group.text.strip() else ("", group.text)
    return f'{space}<span class="{classes}" tabindex="0">{_with_marks(text)}<span class="c">{cards}</span></span>'


def _card(token: ShadedToken) -> str:
    """What hovering shows of a token: its probability, and the alternatives."""
    head = f'<span class="h"><b>{markup(name_of(token.data))}</b> · {facts_of(token)}</span>'
    rows = "".join(
        f'<span class="r{" d" if bar.drawn else ""}"><span>{markup(bar.name)}</span>'
        f'<span class="b"><i style="width:{100 * bar.probability:.1f}%"></i></span>'
        f"<span>{bar.label}</span></span>"
        for bar in bars(token)
    )
    return head + rows


def _classes(probability: float) -> str:
    step = step_of(probability)
    return f"s{step.number}{' u' if step.underlined else ''}"


def _with_marks(text: str) -> str:
    """A token's text with a mark before each newline and tab."""
    marked = markup(text).replace("\n", '<span class="n">⏎</span>\n')
    return marked.replace("\t", '<span class="n">⇥</span>\t')
