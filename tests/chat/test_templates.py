"""Untrusted chat templates: bounded time and output, and no access to Python objects."""

import time

import pytest

from lclm_jax.data.chat import templates
from lclm_jax.data.chat.sourced_str import SourcedStr
from lclm_jax.data.chat.templates import render_template
from lclm_jax.data.text.tokenizer import TextError

pytestmark = pytest.mark.image

SOURCE = object()
CHAT = [{"role": "user", "content": SourcedStr("Who likes figs?", SOURCE)}]
DOUBLE = (
    "{% set ns = namespace(x='aaaaaaaaaaaaaaaa') %}"
    "{% for i in range(60) %}{% set ns.x = EXPRESSION %}{% endfor %}"
)
ENDLESS = {
    "nested loops": "{% for a in range(99999) %}" * 2 + "{% endfor %}" * 2,
    "macros": (
        "{% macro f(n) %}{% if n > 0 %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}"
    ),
    "a macro of itself": "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "a loop of itself": "{% set l = [1] %}{% for x in l recursive %}{{ loop(l) }}{% endfor %}",
}
LONG = {
    "printing": "{% for a in range(9999) %}{{ 'a' * 9999 }}{% endfor %}",
    "doubling by ~": DOUBLE.replace("EXPRESSION", "ns.x ~ ns.x"),
    "doubling by +": DOUBLE.replace("EXPRESSION", "ns.x + ns.x"),
    "doubling by replace": DOUBLE.replace("EXPRESSION", "ns.x.replace('a', ns.x)"),
    "doubling by join": DOUBLE.replace("EXPRESSION", "ns.x.join([ns.x, ns.x, ns.x])"),
    "doubling by a filter": DOUBLE.replace("EXPRESSION", "[ns.x, ns.x] | join"),
    "doubling lists": "{% set ns = namespace(x=[1, 2]) %}{% for i in range(60) %}"
    "{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "a product": "{{ 'a' * 10000000000 }}",
    "a product of words": "{{ messages[0].content * 10000000000 }}",
    "a product of a list": "{{ ([0] * 10000000000) | length }}",
    "a power": "{{ (10 ** 100000) ** 100000 }}",
    "a width": "{{ 'a' | center(10000000000) }}",
    "a method's width": "{{ 'a'.ljust(10000000000) }}",
    "a format": "{{ '%10000000000d' % 1 }}",
    "a format's filter": "{{ '%10000000000s' | format('x') }}",
    "a format's method": "{{ '{:>10000000000}'.format('x') }}",
    "tabs": "{{ '\\t\\t\\t'.expandtabs(2000000000) }}",
    "indented JSON": "{{ range(9999) | list | tojson(indent=100000) }}",
    "a batch": "{{ [1] | batch(10000000000, 'x') | list }}",
}
SECRET = (
    "{{ ''.__class__.__mro__ }}",
    "{{ messages[0].content._runs }}",
    "{{ '{0.__class__}'.format(messages) }}",
    "{{ messages[0].content.format_map({}).__class__ }}",
    "{{ ('{0._runs}' ~ '').format(messages[0].content) }}",
)


def seconds(function, *args) -> float:
    start = time.process_time()
    with pytest.raises(TextError) as error:
        function(*args)
    assert any(words in str(error.value) for words in ("does not end", "too much", "without end"))
    return time.process_time() - start


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_that_does_not_end_is_stopped(name, monkeypatch):
    monkeypatch.setattr(templates, "MAX_STEPS", 20_000)
    assert seconds(render_template, ENDLESS[name], CHAT) < 5


@pytest.mark.parametrize("name", LONG)
def test_a_template_that_writes_without_bound_is_stopped(name):
    assert seconds(render_template, LONG[name], CHAT) < 20


@pytest.mark.parametrize("template", SECRET)
def test_a_template_sees_nothing_of_python(template):
    try:
        shown = render_template(template, CHAT)
    except TextError:
        return
    assert "class" not in shown and "object" not in shown and str(id(SOURCE)) not in shown


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{{ raise_exception('roles must alternate') }}",
            "refuses this chat: roles must alternate",
        ),
        ("{% if %}", "refuses this chat: Expected an expression"),
        ("{{ a.b.c }}", "refuses this chat: 'a' is undefined"),
        ("{{ 1 / 0 }}", "refuses this chat: division by zero"),
        ("{{ messages[5].content }}", "refuses this chat: list object has no element 5"),
        ("{{ 'a' + 1 }}", "refuses this chat: "),
        (
            "{% for a in [1] %}" * 25 + "{% endfor %}" * 25,
            "refuses this chat: too many statically nested blocks",
        ),
    ],
)
def test_a_template_that_fails_is_an_error_of_the_chat(template, message):
    with pytest.raises(TextError, match=message):
        render_template(template, CHAT)


def test_a_long_chat_is_not_too_much():
    content = SourcedStr("Who likes figs? " * 500_000, SOURCE)
    template = "{% for m in messages %}{{ m.role ~ ': ' ~ m.content.strip() }}{% endfor %}"
    rendered = render_template(template, [{"role": "user", "content": content}] * 5)
    assert len(rendered) > 5 * 7_900_000
