"""Chat templates of our own that take tools, each with the constructs that a well-known family writes calls with."""

from __future__ import annotations

import pytest


class _All:
    def __contains__(self, digest: object) -> bool:
        return True


def trust_templates(patch: pytest.MonkeyPatch) -> None:
    """Renders in this process, which is quicker than in one of its own."""
    patch.setattr("gptcli.text.chat_templates.chat_template.TRUSTED_TEMPLATES", _All())


_HERMES_SYSTEM = """
{%- if tools %}
{{- '<|im_start|>system\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{%- endif %}
{{- '# Tools\n\n<tools>' }}
{%- for tool in tools %}{{- '\n' ~ (tool | tojson) }}{%- endfor %}
{{- '\n</tools>\n\n' ~ EXAMPLE ~ '<|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}"""
_ANSWER = """
{%- elif message.role == 'tool' %}
{%- if loop.index0 == 0 or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
{{- '\n<tool_response>\n' + message.content + '\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\n' }}{%- endif %}
{%- elif not (message.role == 'system' and loop.first) %}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""


def _chatml(example: str, call: str) -> str:
    """A template in the manner of Qwen's. call: writes `call.name` and `call.arguments`."""
    return f"""{{%- set EXAMPLE = {example!r} %}}{_HERMES_SYSTEM}
{{%- for message in messages %}}
{{%- if message.role == 'assistant' and message.tool_calls %}}
{{{{- '<|im_start|>assistant\n' + message.content }}}}
{{%- for tool_call in message.tool_calls %}}{{%- set call = tool_call.function %}}
{{%- if message.content or not loop.first %}}{{{{- '\n' }}}}{{%- endif %}}
{call}{{%- endfor %}}
{{{{- '<|im_end|>\n' }}}}{_ANSWER}"""


HERMES = _chatml(
    '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>',
    """{{- '<tool_call>\n{"name": "' ~ call.name ~ '", "arguments": ' ~ (call.arguments | tojson) }}
{{- '}\n</tool_call>' }}""",
)
TEMPLATES = {
    "hermes": HERMES,
    "tagged": _chatml(
        "<tool_call>\n<function=name>\n<parameter=key>\nvalue\n</parameter>\n</function>\n</tool_call>",
        """{{- '<tool_call>\n<function=' ~ call.name ~ '>\n' }}
{%- for key, value in call.arguments | items %}
{{- '<parameter=' ~ key ~ '>\n' ~ (value if value is string else value | tojson) ~ '\n</parameter>\n' }}
{%- endfor %}{{- '</function>\n</tool_call>' }}""",
    ),
    "glm": _chatml(
        "<tool_call>{function-name}\n<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n</tool_call>",
        """{{- '<tool_call>' ~ call.name ~ '\n' }}
{%- for key, value in call.arguments.items() %}
{{- '<arg_key>' ~ key ~ '</arg_key>\n<arg_value>' ~ (value if value is string else value | tojson) }}
{{- '</arg_value>\n' }}{%- endfor %}{{- '</tool_call>' }}""",
    ),
    "lfm": _chatml(
        "List of tools",
        """{{- '<|tool_call_start|>[' ~ call.name ~ '(' }}{%- for key, value in call.arguments.items() %}
{{- key ~ '=' ~ (value | tojson) ~ ('' if loop.last else ', ') }}{%- endfor %}{{- ')]<|tool_call_end|>' }}""",
    ),
    "kimi": _chatml(
        "Tools",
        """{{- '<|tool_calls_section_begin|><|tool_call_begin|>functions.' ~ call.name ~ ':' ~ loop.index0 }}
{{- '<|tool_call_argument_begin|>' ~ (call.arguments | tojson) ~ '<|tool_call_end|><|tool_calls_section_end|>' }}""",
    ),
    "tool_calls": _chatml(
        '<tool_calls>[{"name": <name>, "arguments": <args>}]</tool_calls>',
        """{{- '<tool_calls>[{"name": "' ~ call.name ~ '", "arguments": ' ~ (call.arguments | tojson) }}
{{- '}]</tool_calls>' }}""",
    ),
    "deepseek_fenced": _chatml(
        "Tools",
        """{{- '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + tool_call.type + '<｜tool▁sep｜>' + call.name }}
{{- '\n```json\n' + call.arguments + '\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>' }}""",
    ),
    "phi": _chatml(
        "Write functools[{...}, ...].",
        """{{- 'functools[' if loop.first else ', ' }}{{- '{"name": "' ~ call.name ~ '", "arguments": ' }}
{{- (call.arguments | tojson) ~ '}' ~ (']' if loop.last else '') }}""",
    ),
    "internlm": _chatml(
        "Tools",
        """{{- '<|action_start|><|plugin|>\n{"name": "' ~ call.name ~ '", "arguments": ' ~ (call.arguments | string) }}
{{- '}<|action_end|>' }}""",
    ),
    "command": _chatml(
        "Write <|START_ACTION|> and a list.",
        """{{- '<|START_ACTION|>[\n    {"tool_name": "' ~ call.name ~ '", "parameters": ' ~ (call.arguments | tojson) }}
{{- '}\n]<|END_ACTION|>' }}""",
    ),
    "gemma": _chatml(
        "Tools",
        """{%- macro spelled(value) -%}
{{- '<|"|>' + value + '<|"|>' if value is string else value | tojson -}}
{%- endmacro %}
{{- '<|tool_call>call:' ~ call.name ~ '{' }}{%- for key, value in call.arguments | dictsort %}
{{- key ~ ':' ~ spelled(value) ~ ('' if loop.last else ',') }}{%- endfor %}{{- '}<tool_call|>' }}""",
    ),
    "llama": """{{- bos_token }}
{%- for message in messages %}
{%- if 'tool_calls' in message %}
{%- if message.tool_calls | length != 1 %}{{- raise_exception('only single tool-calls') }}{%- endif %}
{%- set call = message.tool_calls[0].function %}
{{- '<|im_start|>assistant\n\n{"name": "' + call.name + '", "parameters": ' + (call.arguments | tojson) }}
{{- '}<|im_end|>' }}
{%- elif message.role == 'tool' %}{{- '<|im_start|>ipython\n\n' + message.content | tojson + '<|im_end|>' }}
{%- elif message.role == 'user' and tools and loop.first %}
{{- '<|im_start|>user\n\nRespond in the format {"name": function name, "parameters": dictionary}.\n\n' }}
{%- for tool in tools %}{{- tool | tojson(indent=4) + '\n\n' }}{%- endfor %}{{- message.content + '<|im_end|>' }}
{%- else %}{{- '<|im_start|>' + message.role + '\n\n' + message.content | trim + '<|im_end|>' }}{%- endif %}
{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n\n' }}{%- endif %}""",
    "mistral_list": """{{- bos_token }}
{%- set asked = messages | selectattr('role', 'equalto', 'user') | list %}
{%- for message in messages %}
{%- if message.role == 'user' %}
{%- if tools is not none and message == asked[-1] %}
{{- '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{%- endif %}
{{- '[INST]' + message.content + '[/INST]' }}
{%- elif message.tool_calls is defined and message.tool_calls is not none %}{{- '[TOOL_CALLS][' }}
{%- for call in message.tool_calls %}
{%- if call.id | length != 9 %}{{- raise_exception('Tool call IDs have length 9!') }}{%- endif %}
{{- (call.function | tojson)[:-1] + ', "id": "' + call.id + '"}' + ('' if loop.last else ', ') }}{%- endfor %}
{{- ']' + eos_token }}
{%- elif message.role == 'tool' %}
{{- '[TOOL_RESULTS]{"content": ' + message.content + ', "call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
{%- elif message.role == 'assistant' %}{{- message.content + eos_token }}
{%- endif %}{%- endfor %}""",
    "mistral": """{{- bos_token }}{%- for message in messages %}
{%- if message.role == 'user' %}
{%- if tools and loop.first %}{{- '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{%- endif %}
{{- '[INST]' + message.content + '[/INST]' }}
{%- elif message.get('tool_calls') %}{{- message.content }}{%- for call in message.tool_calls %}
{{- '[TOOL_CALLS]' + call.function.name + '[ARGS]' + call.function.arguments | tojson }}{%- endfor %}{{- eos_token }}
{%- elif message.role == 'tool' %}{{- '[TOOL_RESULTS]' + message.content + '[/TOOL_RESULTS]' }}
{%- else %}{{- message.content + eos_token }}{%- endif %}{%- endfor %}""",
    "mistral_id": """{{- bos_token }}{%- for message in messages %}
{%- if message.role == 'user' %}
{%- if tools and loop.last %}{{- '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{%- endif %}
{{- '[INST]' + message.content + '[/INST]' }}
{%- elif message.get('tool_calls') %}{%- for call in message.tool_calls %}
{{- '[TOOL_CALLS]' + call.function.name + '[CALL_ID]' + call.id + '[ARGS]' + call.function.arguments | tojson }}
{%- endfor %}{{- eos_token }}
{%- elif message.role == 'tool' %}
{{- '[TOOL_RESULTS]' + message.tool_call_id + '[TOOL_CONTENT]' + message.content + '[/TOOL_RESULTS]' }}
{%- else %}{{- message.content + eos_token }}{%- endif %}{%- endfor %}""",
    "harmony": """{{- '<|start|>system<|message|>Calls go to the commentary channel.<|end|>' }}
{%- if tools %}{{- '<|start|>developer<|message|>namespace functions {\n' }}
{%- for tool in tools %}{{- '// ' + tool.function.description + '\ntype ' + tool.function.name + ' = (_: {\n' }}
{%- for key, value in tool.function.parameters.properties.items() %}{{- key + ': ' + value.type + ',\n' }}{%- endfor %}
{{- '}) => any;\n' }}{%- endfor %}{{- '}<|end|>' }}{%- endif %}
{%- set last = namespace(name=none) %}
{%- for message in messages %}
{%- if message.role == 'assistant' and 'tool_calls' in message %}
{%- if message.thinking %}
{{- '<|start|>assistant<|channel|>analysis<|message|>' + message.thinking + '<|end|>' }}{%- endif %}
{%- set call = message.tool_calls[0].function %}{%- set last.name = call.name %}
{{- '<|start|>assistant to=functions.' + call.name + '<|channel|>commentary json<|message|>' }}
{{- call.arguments | tojson + '<|call|>' }}
{%- elif message.role == 'assistant' %}
{{- '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|end|>' }}
{%- elif message.role == 'tool' %}
{{- '<|start|>functions.' + last.name + ' to=assistant<|channel|>commentary<|message|>' }}
{{- message.content | tojson + '<|end|>' }}
{%- else %}{{- '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}""",
    "pythonic": """{{- bos_token }}{%- for message in messages %}
{{- '<start_of_turn>' + {'assistant': 'model', 'tool': 'user'}.get(message.role, message.role) + '\n' }}
{%- if loop.first and tools %}
{{- 'Answer with a python list of calls: [f(a=1), g()]\n' + tools | tojson(indent=4) + '\n\n' }}{%- endif %}
{%- if 'tool_calls' in message %}{{- '[' }}
{%- for tool_call in message.tool_calls %}{%- set call = tool_call.function %}
{{- call.name + '(' }}{%- for key, value in call.arguments.items() %}
{{- key + '=' + value | tojson + ('' if loop.last else ', ') }}{%- endfor %}{{- ')' + ('' if loop.last else ', ') }}
{%- endfor %}{{- ']' }}{%- endif %}
{{- message.content | trim + '<end_of_turn>\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{%- endif %}""",
}
# Leaves calls out, though it asks for them, as SmolLM3's does.
FORGETFUL = """{%- if tools %}
{{- '<|im_start|>system\nTools: ' + tools | tojson + '\nUse <tool_call> and </tool_call>.<|im_end|>\n' }}
{%- endif %}{%- for message in messages %}
{{- '<|im_start|>' + {'tool': 'user'}.get(message.role, message.role) + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""
