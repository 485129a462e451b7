"""Chat templates as Jinja, in Jinja's sandbox: source and variables in, text out. Knows nothing of tokens or processes.

Jinja's sandbox keeps templates from Python's internals; `sandbox/client.py` limits their time and memory.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gptcli.errors import TemplateError


class JinjaTemplate:
    """A compiled template."""

    def __init__(self, source: str) -> None:
        """Raises TemplateError, whose message is the reason alone."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationBlocks]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(f"line {error.lineno}: {error.message}") from None
        except Exception as error:  # compiling evaluates constants, which can raise any
            raise TemplateError(_reason(error)) from None

    def render(self, variables: Mapping[str, Any]) -> str:
        """The template's text. Raises TemplateError, whose message is the reason alone."""
        try:
            return self._template.render(variables)
        except Exception as error:  # a template can raise any
            raise TemplateError(_reason(error)) from None


def _reason(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "it takes too much memory"
    return str(error) or type(error).__name__


class _GenerationBlocks(Extension):
    """Renders `{% generation %}` blocks, which mark the assistant's text for training."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # A call block, as in transformers: variables set inside stay inside.
        return nodes.CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

    def _render(self, caller: Macro) -> str:
        return caller()


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes for HTML, which no model was trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
