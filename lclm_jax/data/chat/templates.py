"""Chat templates: Jinja as transformers renders it, with the source of every character.

A template comes with a model and is not trusted: it runs in Jinja's sandbox, and it is stopped
where it takes too many steps or writes too much.
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
    FAILURES,
    SourcedStr,
    join,
    mark,
    pieces,
    replace_marks,
    trace,
)
from lclm_jax.data.text.tokenizer import TextError
from lclm_jax.errors import UserError

STEPS = 2_000_000  # of loops and calls
CHARACTERS = 32_000_000  # written in all, and 50 times as many as the chat has
SECONDS = 20.0
# Filters that do nothing but call methods of strings, which keep the sources.
EXACT = {
    *("trim", "upper", "lower", "capitalize", "replace", "truncate", "reverse", "first", "last"),
    *("string", "default", "d"),
}


@dataclass(frozen=True)
class Generated:
    """The source of text between `{% generation %}` tags, around the source it has otherwise."""

    source: Any


@dataclass
class Budget:
    """What a template may still use."""

    steps: int
    characters: int
    deadline: float

    def spend(self, steps: int = 1, characters: int = 0):
        """Raises TextError where there is too little left."""
        self.steps -= steps
        self.characters -= characters
        if self.steps < 0 or time.monotonic() > self.deadline:
            raise TextError(
                f"the chat template does not end: it took {STEPS:,} steps or {SECONDS:.0f} seconds"
            )
        if self.characters < 0:
            raise TextError(f"the chat template writes too much: over {CHARACTERS:,} characters")


_budget: ContextVar[Budget] = ContextVar("budget")


def render(template: str, messages: Sequence[Mapping[str, Any]], **settings: Any) -> SourcedStr:
    """The text of a chat, whose strings are `SourcedStr`; settings are what else the template reads.

    Text between `{% generation %}` tags has sources of the class Generated.
    Raises TextError for a template that is broken, refuses the chat, or does not end.
    """
    length = sum(map(len, _strings([messages, settings])))
    try:
        with _limited(length):
            compiled = _compile(template)
            return join(compiled.generate(messages=messages, **settings))
    except UserError:
        raise
    except RecursionError as error:
        raise TextError("the chat template calls itself without an end") from error
    except FAILURES as error:
        raise TextError(f"the chat template refuses this chat: {error}") from error


@contextmanager
def _limited(length: int) -> Iterator[None]:
    budget = Budget(STEPS, CHARACTERS + 50 * length, time.monotonic() + SECONDS)
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
    """The tag `{% generation %}`, which says what the assistant writes."""

    tags: ClassVar = {"generation"}

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Callable[[], str]) -> SourcedStr:
        text = join([caller()])
        return join([SourcedStr(piece, Generated(source)) for piece, source in pieces(text)])


class _CodeGenerator(CodeGenerator):
    """Writes `a ~ b` as a call of the environment's own function."""

    def visit_Concat(self, node: nodes.Concat, frame: Any):
        self.write("environment.concat([str(x) for x in (")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write(")])")


class _Environment(ImmutableSandboxedEnvironment):
    """Renders as transformers does, in traced strings and a bounded number of steps."""

    code_generator_class = _CodeGenerator
    intercepted_binops = frozenset(["+", "*", "%", "**"])

    def __init__(self):
        extensions = (_Generation, loopcontrols)
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=extensions, finalize=_printed
        )
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        del self.globals["lipsum"]
        self.filters = {name: _traced_filter(name, fn) for name, fn in self.filters.items()}
        self.filters |= {"tojson": _to_json, "_items_of_loop": _items_of_loop}

    @staticmethod
    def concat(parts: Any) -> SourcedStr:
        found = []
        for part in parts:
            _budget.get().spend(0, len(part))
            found.append(part)
        return join(found)

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
        return _measured(trace(function, left, right) if operator == "%" else function(left, right))

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
        return _measured(trace(method, owner, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format` in the sandbox, with a traced result."""
        wrap = super().wrap_str_format
        if wrap(value) is None:
            return None

        def method(text: str, *args: Any, **kwargs: Any) -> Any:
            formatted = wrap(getattr("".join([text]), value.__name__))
            return formatted(*args, **kwargs) if formatted else ""

        def formatted(*args: Any, **kwargs: Any) -> str:
            _budget.get().spend(1, _growth("format", (value.__self__,), {}))
            return _measured(trace(method, value.__self__, *args, **kwargs))

        return formatted


def _traced_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter of bounded work, whose result is traced."""

    @wraps(function)  # with the attribute by which Jinja hands over its context
    def call(*args: Any, **kwargs: Any) -> Any:
        args = tuple(list(x) if isinstance(x, GeneratorType) else x for x in args)
        _budget.get().spend(1, _growth(name, args, kwargs))
        traced = function if name in EXACT else partial(trace, function)
        return _measured(traced(*args, **kwargs))

    return call


def _measured(value: Any) -> Any:
    """The value; its size is charged to the budget."""
    _budget.get().spend(1, len(value) if isinstance(value, (str, list)) else 0)
    return value


def _growth(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """An upper bound of the characters that a method or filter of this name adds, where it could
    add more than a few."""
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
    """The same of an operator."""
    if operator == "*":
        sizes = [len(x) if isinstance(x, (str, list, tuple)) else x for x in (left, right)]
        numbers = all(isinstance(x, (int, float)) for x in (left, right))
        return 0 if numbers else max(0, int(sizes[0] * sizes[1]))
    if operator == "**":
        return 1000 * int(min(abs(right), CHARACTERS))
    return _growth("format", (left,), {}) if operator == "%" and isinstance(left, str) else 0


def _items_of_loop(items: Any) -> list[Any]:
    """What a loop goes through; its length is charged to the budget before it begins."""
    found = list(items)
    _budget.get().spend(len(found))
    return found


def _printed(value: Any) -> Any:
    """What is printed of a value: of a list or a mapping Python's own form, traced."""
    if isinstance(value, bytes):
        raise TextError("the chat template prints bytes, expected text")
    return trace(str, value) if isinstance(value, (list, tuple, dict)) else value


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> SourcedStr:
    """JSON as transformers writes it; every string in it, in quotes, keeps its source."""

    def dump(value: Any) -> str:
        form = {"ensure_ascii": ensure_ascii, "indent": indent, "separators": separators}
        return json.dumps(value, **form)

    if indent:
        spaces = indent if isinstance(indent, int) else len(indent)
        _budget.get().spend(1, spaces * len(json.dumps(value)))
    found: list[SourcedStr] = []
    marked = dump(mark(_sorted(value) if sort_keys else value, found))
    if ensure_ascii:
        marked = marked.replace("\\ue000", "\ue000").replace("\\ue001", "\ue001")
    quoted = [
        trace(lambda text: json.dumps(text, ensure_ascii=ensure_ascii)[1:-1], x) for x in found
    ]
    return _measured(replace_marks(marked, quoted))


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, (list, tuple)) else value


def _raise_exception(message: str):
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
