"""Rendering of chat templates as transformers does it, with the source of every character.

A template comes with a model and is not trusted: it runs in Jinja's sandbox, with limits on steps,
output and time.
"""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache, partial, wraps
from types import GeneratorType
from typing import Any, ClassVar

from jinja2 import TemplateError, nodes
from jinja2.compiler import CodeGenerator
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lclm_jax.data.chat.sourced_str import (
    SourcedStr,
    call_with_sources,
    fill_placeholders,
    insert_placeholders,
    join,
    split_by_source,
)
from lclm_jax.data.text.tokenizer import TextError
from lclm_jax.errors import UserError

MAX_STEPS = 2_000_000  # loop items and calls
MAX_CHARACTERS = 32_000_000  # written by a template, in addition to those of the chat
MAX_GROWTH = 50  # characters written per character of the chat
MAX_SECONDS = 20.0
# Filters that only call methods of strings, and so keep the sources.
SOURCE_KEEPING_FILTERS = {
    *("trim", "upper", "lower", "capitalize", "replace", "truncate", "reverse", "first", "last"),
    *("string", "default", "d"),
}


@dataclass(frozen=True)
class GeneratedSource:
    """The source of text between `{% generation %}` tags, wrapping its original source."""

    source: Any


@dataclass
class Budget:
    """The steps, characters and time that a template has left."""

    steps: int
    characters: int
    deadline: float

    def spend(self, steps: int = 1, characters: int = 0):
        """Take from the budget; raises TextError when it is used up."""
        self.steps -= steps
        self.characters -= characters
        if self.steps < 0 or time.monotonic() > self.deadline:
            raise TextError(
                "the chat template does not end: "
                f"it took {MAX_STEPS:,} steps or {MAX_SECONDS:.0f} seconds"
            )
        if self.characters < 0:
            raise TextError(
                f"the chat template writes too much: over {MAX_CHARACTERS:,} characters"
            )


_budget: ContextVar[Budget] = ContextVar("budget")


def render_template(
    template: str, messages: Sequence[Mapping[str, Any]], **settings: Any
) -> SourcedStr:
    """Return the text of a chat with the sources of its strings; `settings` are other variables.

    Text between `{% generation %}` tags has a `GeneratedSource`. Raises TextError for a template
    that is broken, refuses the chat, or does not end.
    """
    length = sum(map(len, _strings([messages, settings])))
    try:
        with _limited(length):
            compiled = _compile(template)
            return join(compiled.generate(messages=messages, **settings))
    except UserError:
        raise
    except RecursionError as error:
        raise TextError("the chat template calls itself without end") from error
    except Exception as error:  # also SyntaxError, of code that Python cannot compile
        raise TextError(f"the chat template refuses this chat: {error}") from error


@contextmanager
def _limited(length: int) -> Iterator[None]:
    budget = Budget(MAX_STEPS, MAX_CHARACTERS + MAX_GROWTH * length, time.monotonic() + MAX_SECONDS)
    token = _budget.set(budget)
    try:
        yield
    finally:
        _budget.reset(token)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _strings(item)


@lru_cache(maxsize=64)
def _compile(template: str) -> Any:
    return _Environment().from_string(template)


class _Generation(Extension):
    """The tag `{% generation %}`, which marks what the assistant writes."""

    tags: ClassVar = {"generation"}

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Callable[[], str]) -> SourcedStr:
        text = join([caller()])
        return join(
            [SourcedStr(piece, GeneratedSource(source)) for piece, source in split_by_source(text)]
        )


class _CodeGenerator(CodeGenerator):
    """Compiler of templates that compiles `a ~ b` to a call of `_Environment.concat`."""

    def visit_Concat(self, node: nodes.Concat, frame: Any):
        self.write("environment.concat([str(x) for x in (")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write(")])")


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja environment of transformers, with sourced strings and a budget."""

    code_generator_class = _CodeGenerator
    intercepted_binops = frozenset(["+", "*", "%", "**"])

    def __init__(self):
        extensions = (_Generation, loopcontrols)
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=extensions, finalize=_printed
        )
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        del self.globals["lipsum"]
        self.filters = {name: _sourced_filter(name, fn) for name, fn in self.filters.items()}
        self.filters |= {"tojson": _to_json, "_items_of_loop": _items_of_loop}

    @staticmethod
    def concat(parts: Any) -> SourcedStr:
        texts = []
        for part in parts:
            _budget.get().spend(0, len(part))
            texts.append(part)
        return join(texts)

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        for loop in source.find_all(nodes.For):
            loop.iter = nodes.Filter(
                loop.iter,
                "_items_of_loop",
                [],
                [],
                None,
                None,
                lineno=loop.lineno,
                environment=self,
            )
        return super()._generate(source, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _budget.get().spend(1, _operator_growth(operator, left, right))
        function = self.binop_table[operator]
        return _measured(
            call_with_sources(function, left, right) if operator == "%" else function(left, right)
        )

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        call = super().call
        if not isinstance(owner, str):
            _budget.get().spend(1, _growth("", args, kwargs))
            return call(__context, __obj, *args, **kwargs)

        def method(text: str, *args: Any, **kwargs: Any) -> Any:
            return call(__context, getattr(text, name), *args, **kwargs)

        _budget.get().spend(1, _growth(name, (owner, *args), kwargs))
        if isinstance(owner, SourcedStr) and name in vars(SourcedStr):
            return _measured(method(owner, *args, **kwargs))
        return _measured(call_with_sources(method, owner, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Return the sandbox's `str.format`, with sources in its result."""
        wrap = super().wrap_str_format
        if wrap(value) is None:
            return None

        def method(text: str, *args: Any, **kwargs: Any) -> Any:
            formatted = wrap(getattr("".join([text]), value.__name__))
            return formatted(*args, **kwargs) if formatted else ""

        def formatted(*args: Any, **kwargs: Any) -> str:
            _budget.get().spend(1, _growth("format", (value.__self__,), {}))
            return _measured(call_with_sources(method, value.__self__, *args, **kwargs))

        return formatted


def _sourced_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that keeps sources and spends the budget."""

    @wraps(function)  # keeps the attribute that tells Jinja to pass its context
    def call(*args: Any, **kwargs: Any) -> Any:
        args = tuple(list(x) if isinstance(x, GeneratorType) else x for x in args)
        _budget.get().spend(1, _growth(name, args, kwargs))
        sourced = (
            function if name in SOURCE_KEEPING_FILTERS else partial(call_with_sources, function)
        )
        return _measured(sourced(*args, **kwargs))

    return call


def _measured(value: Any) -> Any:
    """Charge the size of a value to the budget and return the value."""
    _budget.get().spend(1, len(value) if isinstance(value, (str, list)) else 0)
    return value


def _growth(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """Return an upper bound of the characters that a method or filter adds.

    Methods that add only a few characters count as 0.
    """
    given = [*args, *kwargs.values()]
    texts = [x for x in given if isinstance(x, str)]
    widest = max((abs(x) for x in given if type(x) is int), default=0)
    if name == "replace" and len(texts) >= 3:
        text, old, new = texts[:3]
        return (text.count(old) if old else len(text) + 1) * len(new)
    if name == "join":
        items = [len(x) for x in given if isinstance(x, (list, tuple))]
        return sum(items) * max(map(len, texts), default=0)
    if name == "format" and texts:
        return max((int(digits[:20]) for digits in re.findall(r"[0-9]+", texts[0])), default=0)
    if name in ("expandtabs", "indent"):
        return widest * (1 + sum(text.count("\t") + text.count("\n") for text in texts))
    return widest if widest > 1000 else 0


def _operator_growth(operator: str, left: Any, right: Any) -> int:
    """Return an upper bound of the characters that an operator adds."""
    if operator == "*":
        sizes = [len(x) if isinstance(x, (str, list, tuple)) else x for x in (left, right)]
        numbers = all(isinstance(x, (int, float)) for x in (left, right))
        return 0 if numbers else max(0, int(sizes[0] * sizes[1]))
    if operator == "**":
        return 1000 * int(min(abs(right), MAX_CHARACTERS))
    return _growth("format", (left,), {}) if operator == "%" and isinstance(left, str) else 0


def _items_of_loop(items: Any) -> list[Any]:
    """Return the items of a loop, charged to the budget before the loop begins."""
    listed = list(items)
    _budget.get().spend(len(listed))
    return listed


def _printed(value: Any) -> Any:
    """Return what a template prints for a value: lists and mappings as Python prints them."""
    if isinstance(value, bytes):
        raise TextError("the chat template prints bytes, expected text")
    return call_with_sources(str, value) if isinstance(value, (list, tuple, dict)) else value


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> SourcedStr:
    """Return JSON as transformers writes it; strings keep their source inside the quotes."""

    def dump(value: Any) -> str:
        form = {"ensure_ascii": ensure_ascii, "indent": indent, "separators": separators}
        return json.dumps(value, **form)

    if indent:
        spaces = indent if isinstance(indent, int) else len(indent)
        _budget.get().spend(1, spaces * len(json.dumps(value)))
    originals: list[SourcedStr] = []
    marked = dump(insert_placeholders(_sorted(value) if sort_keys else value, originals))
    if ensure_ascii:
        marked = marked.replace("\\ue000", "\ue000").replace("\\ue001", "\ue001")
    quoted = [
        call_with_sources(lambda text: json.dumps(text, ensure_ascii=ensure_ascii)[1:-1], x)
        for x in originals
    ]
    return _measured(fill_placeholders(marked, quoted))


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, (list, tuple)) else value


def _raise_exception(message: str):
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
