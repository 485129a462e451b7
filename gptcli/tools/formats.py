"""The table of call formats: how families of models write calls in their text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gptcli.errors import UsageError
from gptcli.tools.call_grammar import LEFT_TO_THE_MODEL, Grammar, Rewrite
from gptcli.tools.definitions import AUTO, REQUIRED, Definition, ToolCall, is_strict, tool_name, tool_parameters
from gptcli.tools.json_reading import whole
from gptcli.tools.syntaxes import Braced, JsonCall, NamedJson, Pythonic, Syntax, Tagged, Written


@dataclass(frozen=True)
class Beginning:
    """The beginning of a text that is all calls, without a mark. begun: matches what may become it."""

    opened: re.Pattern[str]
    begun: re.Pattern[str]


@dataclass(frozen=True)
class CallFormat:
    """The marks around a call, and its spelling between them.

    group: the text around several calls that share their marks; None if each has its own. closing: empty if calls last
    to the text's end. also: another opening mark that models write and gptcli does not. others: control tokens that may
    be among the marks.
    """

    name: str
    syntax: Syntax
    opening: str = ""
    closing: str = ""
    group: tuple[str, str] | None = None
    also: str = ""
    others: str = ""
    beginning: Beginning | None = None

    @property
    def openings(self) -> tuple[str, ...]:
        """The marks that a call begins with."""
        return tuple(filter(None, (self.opening, self.also)))

    def is_mark(self, control_token: str) -> bool:
        """Whether calls are written with a control token."""
        return control_token in f"{self.also} {self.others} {self.write([ToolCall('', 'f', {'a': 'b'})])}"

    def read(self, body: str, tools: Sequence[Definition]) -> list[Written]:
        """The calls in a text between marks. Raises ValueError for anything else, or nothing."""
        before, after = self.group or ("", "")
        body = body.strip()
        if len(before) == 1 and not isinstance(self.syntax, JsonCall):
            body = body.removeprefix(before).removesuffix(after)
        calls = self.syntax.read(body, tools)
        if not calls:
            raise ValueError("no call")
        return [Written(whole(name), whole(arguments), id) for name, arguments, id in calls]

    def write(self, calls: Iterable[ToolCall]) -> str:
        """Calls as the model would write them."""
        spelled = [self.syntax.write(call.name, call.arguments) for call in calls]
        if self.group is None:
            return "\n".join(f"{self.opening}{call}{self.closing}" for call in spelled)
        before, after = self.group
        return f"{self.opening}{before}{self.syntax.separator.join(spelled)}{after}{self.closing}"

    def grammar(self, tools: Iterable[Definition], grammar: Grammar, *, opened: bool) -> str:
        """The grammar of a text that is one call of one of the tools, in llguidance's Lark.

        opened: leaves the opening mark out, and allows as many calls as may stand between the marks. Raises UsageError
        if calls cannot be held to a schema. The schemas must be valid.
        """
        before, after = self.group or ("", "")
        call = grammar.any_of(self.syntax.grammar(tool, grammar) for tool in tools)
        more = f" ({grammar.text(self.syntax.separator)} {call})*" if opened and self.group else ""
        start = before if opened else self.opening + before
        return grammar.whole(f"{grammar.text(start)} {call}{more} {grammar.text(after + self.closing)}")


def _call(head: str, tail: str = "", *, begins: str, ends: str = "", separator: str = "") -> NamedJson:
    return NamedJson(head, re.compile(begins), tail, re.compile(ends), separator)


_JSON = Beginning(
    re.compile(r'\[?\s*\{\s*"(name|type|function|parameters|arguments)"'), re.compile(r'\[?\s*(\{\s*("\w{0,10})?)?')
)
_PYTHON = Beginning(re.compile(r"\[\s*[^\W\d][\w.:/-]*\("), re.compile(r"\[\s*[\w.:/-]*"))


def _tags(call: str, key: str, blank: str = "\n") -> Tagged:
    """Calls such as `<function=f>`, with `<parameter=a>`.

    call, key: the opening tags, with `{name}` in them. blank: the text around values.
    """
    ends, closer = (f"</{re.findall('[a-z]+', tag)[0]}>" for tag in (call, key))

    def named(tag: str) -> str:
        return re.escape(tag).replace(r"\{name\}", r"(?P<name>[^>\n]+?)")

    next_tag = rf"(?=\s*(?:{re.escape(key.partition('{')[0])}|{ends}|$))"
    item = re.compile(rf"\s*{named(key)}\n?(?P<value>.*?)\n?{closer}{next_tag}", re.DOTALL)
    return Tagged(
        f"\n{call}\n", key + blank, f"{blank}{closer}\n", f"{ends}\n",
        begins=re.compile(rf"\s*{named(call)}\s*"), item=item, ends=re.compile(rf"\s*{ends}\s*"),
    )  # fmt: skip


_MISTRAL = r"\s*(?:\[TOOL_CALLS\])?\s*(?P<name>[^\s\[{]+)\s*(?:\[CALL_ID\](?P<id>\w+))?(?:\[ARGS\])?\s*"
_LISTED = ("[", "]")

HARMONY = CallFormat(
    "harmony",
    _call(
        "<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>",
        begins=r".*?to=functions\.(?P<name>[^\s<]+)[^{]*<\|message\|>\s*",
    ),
    others="<|start|><|end|><|call|><|return|>",
)
FORMATS = (
    CallFormat("hermes", JsonCall("\n", "\n"), "<tool_call>", "</tool_call>"),
    CallFormat("tagged", _tags("<function={name}>", "<parameter={name}>"), "<tool_call>", "</tool_call>"),
    CallFormat(
        "glm",
        Tagged(
            head="{name}\n",
            key="<arg_key>{name}</arg_key>\n<arg_value>",
            closer="</arg_value>\n",
            tail="",
            begins=re.compile(r"\s*(?P<name>[^\s<]+)\s*"),
            item=re.compile(
                r"\s*<arg_key>(?P<name>.*?)</arg_key>\s*<arg_value>(?P<value>.*?)</arg_value>(?=\s*(<arg_key>|$))",
                re.DOTALL,
            ),
        ),
        "<tool_call>",
        "</tool_call>",
    ),
    CallFormat(
        "minimax",
        _tags('<invoke name="{name}">', '<parameter name="{name}">', blank=""),
        "<minimax:tool_call>",
        "</minimax:tool_call>",
    ),
    CallFormat("seed", _tags("<function={name}>", "<parameter={name}>"), "<seed:tool_call>", "</seed:tool_call>"),
    CallFormat("mistral_id", _call("{name}[CALL_ID]{id}[ARGS]", begins=_MISTRAL), "[TOOL_CALLS]", others="[CALL_ID]"),
    CallFormat("mistral", _call("{name}[ARGS]", begins=_MISTRAL), "[TOOL_CALLS]", others="[CALL_ID]"),
    CallFormat("mistral_list", JsonCall(), "[TOOL_CALLS]", group=_LISTED),
    HARMONY,
    CallFormat("gemma", Braced('<|"|>'), "<|tool_call>", "<tool_call|>"),
    CallFormat("function_gemma", Braced("<escape>", quotes_all=True), "<start_function_call>", "<end_function_call>"),
    CallFormat("lfm", Pythonic(), "<|tool_call_start|>", "<|tool_call_end|>", _LISTED),
    CallFormat(
        "deepseek",
        _call(
            "<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>",
            "<｜tool▁call▁end｜>",
            begins=r"\s*<｜tool▁call▁begin｜>(?P<name>(?!function<)[^\s<]+)<｜tool▁sep｜>\s*",
            ends=r"\s*<｜tool▁call▁end｜>",
        ),
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁end｜>",
        ("", ""),
    ),
    CallFormat(
        "deepseek_fenced",
        _call(
            "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n",
            "\n```<｜tool▁call▁end｜>",
            begins=r"\s*<｜tool▁call▁begin｜>function<｜tool▁sep｜>(?P<name>[^\s<]+)\s*```(?:json)?\s*",
            ends=r"\s*```\s*<｜tool▁call▁end｜>",
            separator="\n",
        ),
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁end｜>",
        ("", ""),
    ),
    CallFormat(
        "kimi",
        _call(
            "<|tool_call_begin|>functions.{name}:0<|tool_call_argument_begin|>",
            "<|tool_call_end|>",
            begins=r"\s*<\|tool_call_begin\|>\s*(?P<id>(?:functions\.)?(?P<name>[^\s<]+?)(?::\d+)?)\s*"
            r"<\|tool_call_argument_begin\|>\s*",
            ends=r"\s*<\|tool_call_end\|>",
        ),
        "<|tool_calls_section_begin|>",
        "<|tool_calls_section_end|>",
        ("", ""),
    ),
    CallFormat("granite", JsonCall(), "<|tool_call|>", group=_LISTED, also="<tool_call>"),
    CallFormat(
        "command",
        JsonCall(name="tool_name", arguments="parameters"),
        "<|START_ACTION|>",
        "<|END_ACTION|>",
        _LISTED,
    ),
    CallFormat("function_call", JsonCall(" ", separator="\n<function_call>"), "<function_call>", group=("", "")),
    CallFormat("phi", JsonCall(), "functools[", "]", ("", "")),  # "functools" alone is a word of Python
    CallFormat("nemotron", JsonCall(), "<TOOLCALL>", "</TOOLCALL>", _LISTED),
    CallFormat("tool_calls", JsonCall(), "<tool_calls>", "</tool_calls>", _LISTED),
    CallFormat("internlm", JsonCall("\n"), "<|action_start|><|plugin|>", "<|action_end|>"),
    CallFormat("llama", JsonCall(arguments="parameters"), also="<|python_tag|>", beginning=_JSON),
    CallFormat("json", JsonCall(), beginning=_JSON),
    CallFormat("pythonic", Pythonic(), group=_LISTED, beginning=_PYTHON),
)


@dataclass(frozen=True)
class ToolUse:
    """The tools of one text, the choice among them, and the format of calls.

    choice: "auto", "required", or the name of the tool that must be called. parallel: whether there may be several
    calls; if not, the first ends the text.
    """

    tools: tuple[Definition, ...]
    choice: str
    format: CallFormat
    parallel: bool = True

    @property
    def holds(self) -> bool:
        """Whether the text must be a call, or calls in it are held."""
        return self.choice != AUTO or bool(self.held_after)

    def grammar(self, control_ids: Mapping[str, int], rewrite: Rewrite) -> str:
        """The grammar of a text that must be a call, or of what follows `held_after`: see `CallFormat.grammar`.

        control_ids: ids of the tokenizer's control tokens by name. rewrite: prepares a valid schema.
        """
        return self.format.grammar(self._held, Grammar(control_ids, rewrite), opened=bool(self.held_after))

    @property
    def held_after(self) -> tuple[str, ...]:
        """The marks after which calls are held to schemas: for strict tools, if no call is required."""
        return self.format.openings if self.format.opening and self._some_strict else ()

    @property
    def unheld(self) -> bool:
        """Whether strict tools cannot be enforced: this format has no opening mark."""
        return self._some_strict and not self.format.opening

    @property
    def schemas(self) -> tuple[tuple[str, str], ...]:
        """The name and the arguments' JSON schema of each tool in the grammar."""
        return tuple((tool_name(tool), json.dumps(tool_parameters(tool))) for tool in self._held)

    @property
    def _some_strict(self) -> bool:
        return self.choice == AUTO and any(map(is_strict, self.tools))

    @property
    def _held(self) -> list[Definition]:
        """The tools that may be called. If no call is required, tools that are not strict take any arguments."""
        if self.choice != AUTO:
            return [tool for tool in self.tools if self.choice in (REQUIRED, tool_name(tool))]
        if not all(map(is_strict, self.tools)) and not isinstance(self.format.syntax, JsonCall | NamedJson):
            raise UsageError(
                "tools: this model's calls are not JSON: all tools can be strict, or none",
                hint=LEFT_TO_THE_MODEL,
                setting="tools",
            )
        anything = {"parameters": {"type": "object"}}
        return [
            tool if is_strict(tool) else {**tool, "function": {**tool["function"], **anything}} for tool in self.tools
        ]
