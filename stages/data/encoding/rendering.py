"""A chat template as a function from turns to text, as transformers renders it, in a sandbox.

A template comes with a model, from anyone. It reaches nothing but the turns, and it ends: bounded
are the rounds of its loops together with its calls, the text and the lists that it assigns, what
`*`, `**`, `%` and padding make, and what it writes. One filter may still make much of a long text.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Iterable, Sequence, Sized
from functools import wraps
from itertools import islice
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import MAX_RANGE, ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

# Llama's templates fall back to this day; today's would make other rows tomorrow.
_DATE = datetime.datetime(2024, 7, 26)
_MAX_STEPS = 1_000_000
_MAX_CHARACTERS = 1_000_000
_MAX_GROWTH = 20
_MAX_BITS = 10_000
_CALL_STEPS = 10
# Fields of `%` and of `format` that pad to a width of five digits, or to one that is given.
_WIDE = re.compile(r"%[^a-zA-Z%]*(\d{5}|\*)|\{[^{}]*(\d{5}|\{)")
_PADDING = ("batch", "center", "format", "indent", "round", "slice", "wordwrap")
# With a space in it, so that no template can name it.
_BUDGET, _ROUNDS, _ASSIGNED = "the budget", "rounds of a loop", "assigned value"

Renderer = Callable[..., str]
"""(messages, tools, add_generation_prompt) to text."""


class Unsafe(Exception):
    """Report a template that reaches out of its sandbox or does not end."""


class Refused(Exception):
    """Report turns that a template cannot render; the text says why."""


def compile_template(source: str, variables: dict[str, Any]) -> Renderer:
    """Compile a template; `variables` are its special tokens by name, such as `bos_token`.

    Raises jinja2.TemplateError where it is no template. The renderer raises Refused and Unsafe.
    """
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, optimized=False,
                           extensions=[_Generation, loopcontrols])  # fmt: skip
    template = environment.compiled(source)

    def render(
        messages: Sequence[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        add_generation_prompt: bool,
    ) -> str:
        budget = _Budget(messages, tools)
        written = template.generate({
            **variables, "messages": messages, "tools": tools, "documents": None,
            "add_generation_prompt": add_generation_prompt, _BUDGET: budget,
        })  # fmt: skip
        parts, size = [], 0
        try:
            for part in written:
                parts.append(part)
                size += len(part)
                if size > _MAX_CHARACTERS:
                    budget.check(size)
        except (SecurityError, RecursionError, MemoryError) as error:
            raise Unsafe(str(error) or type(error).__name__) from error
        # A template is a program: it can fail in any way that a program can.
        except Exception as error:
            raise Refused(str(error) or type(error).__name__) from error
        return "".join(parts)

    return render


class _Budget:
    """What one rendering may still do."""

    __slots__ = ("_given", "_steps")

    def __init__(self, *given: Any) -> None:
        self._steps = _MAX_STEPS
        self._given = given

    def spend(self, steps: int) -> None:
        self._steps -= steps
        if self._steps < 0:
            raise SecurityError(f"it loops and calls more than {_MAX_STEPS:,} times")

    def check(self, size: int) -> None:
        """Refuse a size that the turns do not explain."""
        if size > _MAX_CHARACTERS:
            given = len(json.dumps(self._given, ensure_ascii=False))
            if size > _MAX_CHARACTERS + _MAX_GROWTH * given:
                raise SecurityError(f"it makes more than {_MAX_CHARACTERS:,} characters of {given}")


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.filters |= {name: _narrow(self.filters[name]) for name in _PADDING}
        self.filters |= {"tojson": _tojson, _ROUNDS: _rounds, _ASSIGNED: _assigned}
        del self.globals["lipsum"]
        self.globals |= {
            "raise_exception": _raise_exception, "strftime_now": _DATE.strftime, "range": _range,
            "dict": _Dict(), "namespace": _Namespace,
        }  # fmt: skip

    def compiled(self, source: str) -> Template:
        """Compile a template in which loops and assignments are counted."""
        tree = self.parse(source)
        for loop in list(tree.find_all(nodes.For)):
            loop.iter = nodes.Filter(loop.iter, _ROUNDS, [], [], None, None, lineno=loop.lineno)
        for set_ in list(tree.find_all(nodes.Assign)):
            set_.node = nodes.Filter(set_.node, _ASSIGNED, [], [], None, None, lineno=set_.lineno)
        # A plain dict: every rendering copies it, and a ChainMap is twenty times as slow.
        return Template.from_code(self, self.compile(tree), dict(self.globals))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        budget = __context.parent[_BUDGET]
        budget.spend(_CALL_STEPS)
        for value in args:
            if isinstance(value, str | list):
                budget.check(len(value))
        text = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)
        if isinstance(text, str):
            _check_width(text if __obj.__name__ == "format" else "", args)
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for one, other in ((left, right), (right, left)):
                if isinstance(one, str | list | tuple) and isinstance(other, int):
                    context.parent[_BUDGET].check(len(one) * other)
        elif operator == "%" and isinstance(left, str):
            _check_width(left, ())
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length()
            if bits > _MAX_BITS:
                raise SecurityError("it computes a huge number")
        return super().call_binop(context, operator, left, right)

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        raise SecurityError(f"access to attribute {attribute!r} of {type(obj).__name__!r}")


class _Generation(Extension):
    """`{% generation %}` marks answers for transformers; the mask here needs no mark."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(lineno)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    # As in transformers: `dict` without the attributes of a type.
    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"access to attribute {name!r} of a namespace")
        super().__setitem__(name, value)


@pass_context
def _rounds(context: Context, value: Iterable[Any]) -> Iterable[Any]:
    """Return what a loop goes over; its length is spent."""
    if not isinstance(value, Sized):
        value = list(islice(value, _MAX_STEPS + 1))
    context.parent[_BUDGET].spend(len(value))
    return value


@pass_context
def _assigned(context: Context, value: Any) -> Any:
    if isinstance(value, str | list | tuple):
        context.parent[_BUDGET].check(len(value))
    return value


def _range(*args: int) -> range:
    steps = range(*args)
    # Its length overflows where it is astronomic.
    if steps[MAX_RANGE:]:
        raise SecurityError(f"it asks for a range of more than {MAX_RANGE:,} numbers")
    return steps


def _narrow(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that pads no text to more than a template can need."""

    @wraps(function)
    def narrow(*args: Any, **kwargs: Any) -> Any:
        text = args[0] if function.__name__ == "do_format" else ""
        _check_width(text, [*args, *kwargs.values()])
        return function(*args, **kwargs)

    return narrow


def _check_width(text: str, values: Iterable[Any]) -> None:
    if _WIDE.search(text) or any(isinstance(n, int) and n > MAX_RANGE for n in values):
        raise SecurityError(f"it pads text to more than {MAX_RANGE:,} characters")


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None,
    separators: tuple[str, str] | None = None, sort_keys: bool = False,
) -> str:  # fmt: skip
    _check_width("", (indent,))
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                      sort_keys=sort_keys)  # fmt: skip
