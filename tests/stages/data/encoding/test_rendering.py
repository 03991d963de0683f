"""A template reaches nothing but the turns, and it ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from jinja2 import TemplateError

from stages.data.encoding.rendering import Refused, Unsafe, compile_template
from stages.data.encoding.template import TemplateFault, read_template
from stages.models.tokenizer import load_tokenizer

MESSAGES = [{"role": "user", "content": "abc"}]


def render(source: str, **variables: Any) -> str:
    return compile_template(source, variables)(MESSAGES, None, True)


@pytest.mark.parametrize(
    "source",
    [
        "{% for _ in range(10**9) %}x{% endfor %}",
        "{{ range(10**30) | list }}",
        "{% for _ in range(9999) %}{% for _ in range(9999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(50) }}",
        "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
        "{% for _ in range(99999) %}0123456789{{ messages[0].content }}{% endfor %}",
        "{% set n = namespace(x='aa') %}{% for _ in range(99) %}"
        "{% set n.x = n.x ~ n.x %}{% endfor %}",
        "{% set n = namespace(x=[1]) %}{% for _ in range(99) %}"
        "{% set n.x = n.x + n.x %}{% endfor %}",
        "{{ 'a' * 10**10 }}",
        "{{ 10**10 * [0] }}",
        "{{ 10**(10**9) }}",
        "{{ '%99999999999d' % 1 }}",
        "{{ '%*d' % (10**10, 1) }}",
        "{{ '%99999999999d' | format(1) }}",
        "{{ '{:>99999999999}'.format(1) }}",
        "{{ '{:>{}}'.format(1, 10**10) }}",
        "{{ 'a'.ljust(10**10) }}",
        "{{ 'a' | center(10**10) }}",
        "{{ 'a' | indent(10**10, true) }}",
        "{{ messages | tojson(indent=10**10) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ ''['__class__'] }}",
        "{{ '' | attr('__class__') }}",
        "{{ raise_exception.__globals__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ messages.append(1) }}",
    ],
)  # fmt: skip
def test_what_reaches_out_or_does_not_end_is_refused(source: str) -> None:
    """At once, and whatever it would have taken."""
    with pytest.raises(Unsafe):
        render(source)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ raise_exception('no') }}", "no"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages[0].nothing.more }}", "has no attribute 'nothing'"),
        ("{{ 'a' + 1 }}", "can only concatenate str"),
    ],
)
def test_what_fails_on_the_turns_says_why(source: str, text: str) -> None:
    """Whether the template raises it or Python does."""
    with pytest.raises(Refused, match=text):
        render(source)


def test_what_is_no_template_is_refused_when_it_is_compiled() -> None:
    """Before any row is rendered."""
    with pytest.raises(TemplateError):
        compile_template("{% for %}", {})


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ bos_token }}{{ eos_token }}|", "<s>|"),
        ("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024"),
        ("{% generation %}{{ messages[0]['content'] }}{% endgeneration %}", "abc"),
        ("{{ {'a': '<é>', 'b': [1]} | tojson }}", '{"a": "<é>", "b": [1]}'),
        ("{{ [1] | tojson(indent=2) }}", "[\n  1\n]"),
        ("{% for n in range(9) %}{% if n > 2 %}{% break %}{% endif %}{{ n }}{% endfor %}", "012"),
        ("{% for n in 'abc' %}{{ n }}{{ loop.length }}{{ loop.last }} {% endfor %}",
         "a3False b3False c3True "),
        ("{% for n in [1, 2, 3] | select('odd') %}{{ n }}{{ loop.last }}{% endfor %}",
         "1False3True"),
        ("{% for n in nothing %}{% else %}none{% endfor %}{{ tools is none }}", "noneTrue"),
        ("{% set ns = namespace(a=1) %}{% set ns.a = ns.a + 1 %}{{ ns.a }}{{ dict(b=2).b }}", "22"),
        ("{{ '**%s** {:3}|'.format(1) }}{{ '%s*' % 2 }}{{ 7 % 4 * 2 ** 3 }}{{ '-' * 3 }}",
         "**%s**   1|2*24---"),
        ("{% if add_generation_prompt %}\n  {%- set x = 1 %}\n  {% endif %}\n{{ x }}", "1"),
    ],
)  # fmt: skip
def test_what_templates_use_is_there(source: str, text: str) -> None:
    """The names, filters and tags of transformers, with its treatment of white space."""
    assert render(source, bos_token="<s>") == text


def test_long_conversations_are_no_bomb() -> None:
    """What the turns explain may be as long as they are."""
    messages = [{"role": "user", "content": "x" * 3_000_000}]
    text = compile_template("{% for m in messages %}{{ m.content }}{% endfor %}", {})
    assert text(messages, None, True) == "x" * 3_000_000


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("{{ ''.__class__ }}", "is not safe to run (access to attribute '__class__' of 'str')"),
        ("{% if %}", "is no Jinja template"),
    ],
)
def test_a_template_that_no_row_can_use_is_named(
    byte_model: Callable[..., Any], source: str, found: str
) -> None:
    """It is the template's fault, not a row's; the file given for it is named by its key."""
    model = byte_model()
    with pytest.raises(TemplateFault) as caught:
        read_template(load_tokenizer(model), model, source)
    assert caught.value.where == "data.chat_template"
    assert caught.value.found.startswith(found)
