"""Chat templates of the published kinds, written for these tests, and chats to render with them.

`{bos}` and the like in a template of `TEMPLATES` are Jinja's own; BOS and EOS below are what a
tokenizer calls them.
"""

BOS, EOS, END = "<|begin|>", "<|stop|>", "<|im_end|>"

_GENERATE = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    + _GENERATE
)


def chatml(content: str) -> str:
    """ChatML that prints an expression of the message m."""
    return (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{{ "
        + content
        + " }}<|im_end|>\n{% endfor %}"
        + _GENERATE
    )


TEMPLATES = {
    "chatml": _CHATML,
    "trim": chatml("m.content | trim"),
    "strip": chatml("m['content'].strip()"),
    "strip line ends": chatml("m['content'].lstrip('\\n').rstrip('\\n')"),
    "added together": (
        "{% for m in messages %}{{ '[' + m['role'] + '] ' + m['content'] + eos_token + '\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '[assistant] ' }}{% endif %}"
    ),
    "begin and end": (
        "{{ bos_token }}{% for m in messages %}{{ m.role | upper }}: {{ m.content }}"
        "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    ),
    "headers": (  # as Llama 3
        "{% set loop_messages = messages %}{% for message in loop_messages %}"
        "{% set content = '<|head|>' + message['role'] + '<|body|>\n\n' + "
        "message['content'] | trim + '<|turn|>' %}"
        "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|head|>assistant<|body|>\n\n' }}{% endif %}"
    ),
    "instructions": (  # as Mistral's first ones: no generation prompt
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
        "{{ '[INST] ' + m['content'] + ' [/INST]' }}"
        "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
        "{% else %}{{ m['content'] + '\n\n' }}{% endif %}{% endfor %}"
    ),
    "system folded": (  # as Llama 2
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
        "{% set system_message = messages[0]['content'] %}{% else %}"
        "{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
        "{% for message in loop_messages %}"
        "{% if loop.index0 == 0 and system_message != false %}"
        "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' "
        "+ message['content'] %}"
        "{% else %}{% set content = message['content'] %}{% endif %}"
        "{% if message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}"
        "{% else %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% endif %}"
        "{% endfor %}"
    ),
    "model turns": (  # as Gemma: alternation is checked, the assistant has another name
        "{{ bos_token }}{% for message in messages %}"
        "{% if message['role'] == 'assistant' %}{% set role = 'model' %}"
        "{% else %}{% set role = message['role'] %}{% endif %}"
        "{{ '<|head|>' + role + '\n' + message['content'] | trim + '<|turn|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|head|>model\n' }}{% endif %}"
    ),
    "role in a token": (  # as Zephyr
        "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] "
        "+ eos_token }}\n{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    ),
    "thoughts cut": (  # as Qwen3, DeepSeek R1
        "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}"
        "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}"
        "{% set content = m.content if m.content is string else '' %}"
        "{% if m.role == 'assistant' %}{% set thought = '' %}"
        "{% if m.reasoning_content is string %}{% set thought = m.reasoning_content %}"
        "{% elif '</think>' in content %}"
        "{% set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1] %}"
        "{% set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
        "{{ '<|im_start|>assistant\\n' }}{% if loop.index0 > ns.last and thought %}"
        "{{ '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}{% endif %}{{ content }}"
        '{% for call in m.tool_calls or [] %}{{ \'\\n<tool_call>\\n{"name": "\' }}'
        '{{ call.function.name }}{{ \'", "arguments": \' }}{{ call.function.arguments | tojson }}'
        "{{ '}\\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\\n' }}"
        "{% else %}{{ '<|im_start|>' ~ m.role ~ '\\n' ~ content ~ '<|im_end|>\\n' }}{% endif %}"
        "{% endfor %}" + _GENERATE
    ),
    "xml calls": (
        "{% for t in tools or [] %}{{ t | tojson(indent=2) }}\n{% endfor %}{% for m in messages %}"
        "<|im_start|>{{ m['role'] }}\n{{ m['content'] or '' }}"
        "{% for call in m['tool_calls'] or [] %}<tool_call><f={{ call.function.name }}>\n"
        "{% for key, value in call.function.arguments | items %}<p={{ key }}>\n"
        "{{ value if value is string else value | tojson }}\n</p>\n{% endfor %}</f></tool_call>"
        "{% endfor %}<|im_end|>\n{% endfor %}" + _GENERATE
    ),
    "generation tags": (
        "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n"
        "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n"
        "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
        + _GENERATE
    ),
    "tools described": (
        "{% if tools %}<|im_start|>system\n{% if messages[0].role == 'system' %}"
        "{{ messages[0].content }}\n\n{% endif %}{% for tool in tools %}{{ tool | tojson }}\n"
        "{{ tool.function.name }}: {{ tool.function.description }}\n{% endfor %}"
        "<|im_end|>\n{% endif %}"
        "{% for m in messages %}{% if m.role != 'system' or not tools %}<|im_start|>{{ m.role }}"
        "{% if m.name %} name={{ m.name }}{% endif %}"
        "{% if m.tool_call_id %} id={{ m.tool_call_id }}{% endif %}{{ '\\n' ~ m.content }}"
        "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}<|im_end|>\n{% endif %}"
        "{% endfor %}" + _GENERATE
    ),
    "always opens": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
        "{% endfor %}<|im_start|>assistant\n"
    ),
    "macro and block": (
        "{% macro turn(role, text) %}<|im_start|>{{ role }}\n{{ text }}<|im_end|>\n{% endmacro %}"
        "{% for m in messages %}{% set body %}{{ m.content }}{% endset %}"
        "{{ turn(m.role, body | trim) }}{% endfor %}" + _GENERATE
    ),
    "formats": (
        "{% for m in messages %}{{ '<|im_start|>%s\n%s' % (m.role, m.content) }}"
        "{{ '{}{}'.format('<|im_end|>', '\n') }}{% endfor %}" + _GENERATE
    ),
    "joined": (
        "{% for m in messages %}{{ ['<|im_start|>', m.role, '\n', m.content] | join }}"
        "{{ ''.join(['<|im_end|>', '\n']) }}{% endfor %}" + _GENERATE
    ),
    "empty is said": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.content %}{{ m.content }}{% else %}(silent){% endif %}<|im_end|>\n{% endfor %}"
        + _GENERATE
    ),
    "compared": (
        "{% for m in messages %}{% if m.content == 'none' and m.role == 'system' %}{% continue %}"
        "{% endif %}<|im_start|>{{ m.role }}\n{{ m.content | replace('figs', 'FIGS') }}"
        "{{ m.content | length }}<|im_end|>\n{% endfor %}" + _GENERATE
    ),
    "upper": chatml("m.content | upper"),
    "first letters": chatml("m.content[:12]"),
    "parts": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}"
        "{{ m.content }}{% else %}"
        "{% for p in m.content %}{{ p.text | trim }}{% endfor %}{% endif %}"
        "<|im_end|>\n{% endfor %}" + _GENERATE
    ),
    "plain words": (
        "{% for m in messages %}### {{ m.role | capitalize }}:\n{{ m.content }}\n\n{% endfor %}"
        "{% if add_generation_prompt %}### Assistant:\n{% endif %}"
    ),
}


def _user(content: str, **fields) -> dict:
    return {"role": "user", "content": content, **fields}


def _assistant(content: str, **fields) -> dict:
    return {"role": "assistant", "content": content, **fields}


_CALL = {
    "type": "function",
    "function": {
        "name": "run",
        "arguments": {"code": "print(\"figs\")\nx = 'a\\tb'", "n": [2, None]},
    },
}
_THOUGHT = "<think>\nfigs say Ben\n</think>\n\nBen"
CHATS = {
    "one question": [_user("Who likes figs?"), _assistant("Ben")],
    "spaces at ends": [_user("  Who likes figs?\n"), _assistant("\nBen \n")],
    "line ends": [_user("Who?\n\n"), _assistant("\n\nBen\n\n")],
    "system": [{"role": "system", "content": "Be short. "}, _user("Who?"), _assistant("Ben")],
    "system none": [{"role": "system", "content": "none"}, _user("Who?"), _assistant("Ben")],
    "turns": [
        _user("Who?"),
        _assistant("Ben"),
        _user("And plums?"),
        _assistant("Cy"),
        _user("Why?"),
    ],
    "same words": [_user("Ben"), _assistant("Ben"), _user("Ben"), _assistant("Ben")],
    "empty answer": [_user("Hush"), _assistant(""), _user("Well?"), _assistant("Ben")],
    "empty question": [_user(""), _assistant("Ben")],
    "blank": [_user(" "), _assistant(" \n")],
    "thought in text": [_user("Who?"), _assistant(_THOUGHT)],
    "thought in history": [_user("Who?"), _assistant(_THOUGHT), _user("And?"), _assistant("Cy")],
    "thought in a field": [_user("Who?"), _assistant("Ben", reasoning_content="figs say Ben")],
    "template's words": [
        _user("user\nassistant\n[INST] {{ x }}"),
        _assistant("assistant: '%s' {0}"),
    ],
    "letters": [_user("Straße ﬀ İ é 木 🙂\u200d🙂"), _assistant("naïve\u00a0Ⅷ ß")],
    "only tools": [
        _user("Run"),
        _assistant("", tool_calls=[_CALL]),
        {"role": "tool", "content": "ok\n", "name": "run", "tool_call_id": "c 1"},
        _assistant("Done"),
    ],
    "words and tools": [
        _user("Run", name="Zoë"),
        _assistant("Let me.", tool_calls=[_CALL, _CALL]),
        {"role": "tool", "content": '{"ok": true}'},
        _assistant("Done"),
    ],
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "run",
            "description": 'Runs "code"\nin é',
            "parameters": {"type": "object", "properties": {"a b": {"enum": ["x y", "z"]}}},
        },
    }
]
