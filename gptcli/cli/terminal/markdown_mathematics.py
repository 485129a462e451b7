r"""Keeps mathematics in Markdown as it is written: `$a_1*b$`, `$$...$$`, `\(...\)`, `\[...\]`."""

from __future__ import annotations

import re

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline

# As in pandoc, no blank stands just inside single dollars, and no digit after them: `$5 and $10` are prices.
_INLINE = re.compile(
    r"\\\(.+?\\\) | \\\[.+?\\\] | \$\$.+?\$\$ | \$(?![\s$]) [^$`]*? (?<![\s\\]) \$(?![\d$])", re.DOTALL | re.VERBOSE
)
_DISPLAY = {r"\[": r"\]", "$$": "$$"}


def keep_mathematics(parser: MarkdownIt) -> None:
    """Makes a parser take formulas as text, and formulas on lines of their own as `math_block`."""
    parser.inline.ruler.before("escape", "mathematics", _inline)
    interrupted = ["paragraph", "reference", "blockquote", "list"]
    parser.block.ruler.before("fence", "mathematics", _block, {"alt": interrupted})


def _inline(state: StateInline, silent: bool) -> bool:
    formula = _INLINE.match(state.src, state.pos, state.posMax)
    if formula is None:
        return False
    if not silent:
        state.push("text", "", 0).content = formula[0]
    state.pos = formula.end()
    return True


def _block(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Lines from `\\[` or `$$` to what closes it, or to the end if that is not written yet; no blank line is inside."""
    opening = _line(state, start)[:2]
    if opening not in _DISPLAY or state.is_code_block(start):
        return False
    closing, following = _DISPLAY[opening], start
    while following < end:
        if state.isEmpty(following) or state.sCount[following] < state.blkIndent:
            return False
        before, closed, after = _line(state, following)[2 * (following == start) :].partition(closing)
        following += 1
        if closed and after.strip(" .,;"):
            return False
        if closed:
            break
    if not silent:
        token = state.push("math_block", "", 0)
        token.content = state.getLines(start, following, state.blkIndent, False)
        token.map = [start, following]
        state.line = following
    return True


def _line(state: StateBlock, number: int) -> str:
    return state.src[state.bMarks[number] + state.tShift[number] : state.eMarks[number]]
