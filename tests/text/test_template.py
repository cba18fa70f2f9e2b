"""Chat templates: good ones read as in transformers, and those of strangers cannot do harm."""

from __future__ import annotations

import resource
import time

import pytest
from jinja2.ext import Extension
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from focus_core import ConfigError
from focus_core.text import template as template_module
from focus_core.text.template import render
from tests.tiny import byte_tokenizer

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " Hi\nthere <b>é😀 {{ 1 }}  "},
    {"role": "assistant", "content": "<think>hm</think>\n\nHello, all."},
    {"role": "user", "content": "More?\n"},
]

GOOD = {
    "marks": """{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m.content + eos_token }}{% endfor %}
{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}
""",
    "generation": """{{ bos_token }}
{%- for m in messages -%}
    {%- if m.role == 'assistant' %}
        {% generation %}{{ m.content }}{% set inner = 1 %}{% endgeneration %}{{ inner is defined }}
    {%- else %}
        {{ m.content | trim }}
    {%- endif %}
{%- endfor %}
""",
    "loops": """
{%- set ns = namespace(last=-1, seen=[], text='', self=1) %}
{%- for m in messages[::-1] if m.role != 'system' %}
    {%- set index = (messages | length - 1) - loop.index0 %}
    {%- if ns.last < 0 and m.role == 'user' %}{% set ns.last = index %}{% endif %}
    {%- set ns.seen = ns.seen + [m.role] %}
    {%- if loop.index > 2 %}{% break %}{% endif %}
    {%- set ns.text = ns.text ~ loop.first ~ loop.revindex %}
{%- else %}none{%- endfor %}
{{ ns.last }} {{ ns.seen }} {{ ns.text }}
{%- for m in messages %}
    {%- if loop.previtem is defined %}{{ loop.previtem.role }}>{% endif %}
    {{ m.role }} {{ loop.cycle('a', 'b') }}{{ loop.changed(m.role) }}{% if loop.last %}.{% endif %}
{% endfor %}""",
    "macros": """
{%- macro walk(value, depth=0) %}
    {%- if value is mapping %}
        {%- for key, part in value | dictsort %}{{ '  ' * depth }}{{ key }}:\n{{ walk(part, depth + 1) }}{% endfor %}
    {%- elif value is string %}{{ '  ' * depth ~ value | trim }}\n
    {%- else %}{% for part in value %}{{ walk(part, depth + 1) }}{% endfor %}{% endif %}
{% endmacro %}
{{ walk(messages) }}
{% macro box() %}[{{ caller('x') }}|{{ varargs }}{{ kwargs }}]{% endmacro %}
{% call(y) box(1, z=2) %}{{ y }}{% endcall %}""",
    "filters": """{{ messages | tojson }}{{ messages | tojson(indent=2, sort_keys=true) }}
{{ messages[0] | tojson(separators=(',', ':')) }}{{ messages | map(attribute='role') | unique | join(', ') }}
{{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{{ messages | rejectattr('role', 'in', ['user']) | map(attribute='content') | join('|') }}
{{ [3, 1, 2] | sort | reverse | list }}{{ [1, 2, 3] | sum }}{{ [1, 2, 3, 4, 5] | batch(2, 0) | list }}
{{ [1, 2, 3] | slice(2) | list }}{{ {'b': 1, 'a': 2} | items | list }}
{{ 'a b' | title | center(9) | replace(' ', '_') }}{{ 'x\ny' | indent(4, true) }}{{ none | default('d', true) }}
{{ missing | default('d') }}{{ '<' | e }}{{ '7' | int + 1 }}{{ 2.567 | round(2) }}{{ 'abc' | first }}
{{ messages | last }}{{ 'a b c' | wordcount }}{{ '%s-%s' | format(1, 'b') }}
{{ missing | replace('a', 'b') }}{{ none | center(8) }}{{ missing | join }}
{{ messages | groupby('role') | map('first') | list }}{{ 'abcdef' | truncate(4, true, '…') }}{{ [1, 2] | min }}""",
    "methods": """{% for m in messages %}
{{ m.content.split('</think>')[-1].lstrip('\n').strip() }}{{ m['content'].startswith(' ') }}
{{ m.get('none', 'no') }}{{ m.items() | list }}{{ m.keys() | list }}
{% endfor %}{{ '{}, {a:>4}'.format(1, a='b') }}{{ '{a}'.format_map({'a': 1}) }}
{{ ', '.join(['a', 'b']) }}{{ 'a' in 'ab' }}{{ 'aXb'.partition('X') }}{{ 'x'.ljust(3) + 'y'.rjust(3) }}
{{ 'a-b'.replace('-', '+') }}{{ [1, 2].index(2) }}{{ 'a\nb'.splitlines() }}""",
    "operators": """{{ 7 // 2 }} {{ 7 % 4 }} {{ 2 ** 5 }} {{ 7 / 2 }} {{ -7 - 1 }} {{ 'ab' * 3 }} {{ [1] * 2 }}
{{ '%05.1f%%' % 2.5 }} {{ 1 ~ 'b' ~ none ~ [1] }} {{ (1, 2) + (3,) }} {{ {'a': messages[0]} }} {{ 1 if false }}
{{ 1 < 2 < 3 }} {{ not 1 }}""",
    "blocks": """{% set text %}<{{ messages[1].content }}>{% endset %}{{ text }}
{% filter upper %}{{ text }}{% endfilter %}{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}
{% block one %}{{ messages | length }}{% endblock %}{% set a, b = 1, 'c' %}{{ a }}{{ b }}
{% raw %}{{ no }}{% endraw %}{# silent #}
{% autoescape true %}{{ bos_token ~ '<' | safe }}{{ '<' }}{% endautoescape %}""",
    "names": """{{ strftime_now('%Y-%m') }}{{ tools is none }}{{ documents is none }}{{ pad_token }}{{ bos_token }}
{{ nothing }}{{ dict(a=1, b=[2]) }}{{ range(3) | list }}{{ dict.fromkeys('ab') }}{{ add_generation_prompt }}""",
}

LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
TOO_MUCH = {
    "loop": LOOPS + "{% endfor %}" * 3,
    "filtered loop": "{% for a in range(99999) %}{% for b in range(99999) if b < 0 %}{% endfor %}{% endfor %}",
    "list": "{% set l = range(99999) | list %}{{ range(99999) | select('in', l) | list }}",
    "calls": "".join(
        f"{{% macro m{i}() %}}{f'{{{{ m{i - 1}() }}}}' * 10 if i else 'x'}{{% endmacro %}}" for i in range(15)
    )
    + "{{ m14() }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "block": "{% block a %}{{ self.a() }}{% endblock %}",
    "output": "{% for a in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
    "constant output": "{% for a in range(9999) %}" + "a" * 1000 + "{% endfor %}",
    "macro": "{% set l = ['a' * 1000] * 1000 %}{% macro m() %}" + "{{ l }}" * 500 + "{% endmacro %}{{ m() }}",
    "times": "{{ 'a' * 10 ** 10 }}",
    "list times": "{{ [1] * 10 ** 10 }}",
    "power": "{{ 10 ** (10 ** 9) }}",
    "squares": "{% set n = namespace(x=3) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "center": "{{ 'a'.center(10 ** 10) }}",
    "zfill": "{{ 'a'.zfill(10 ** 10) }}",
    "center filter": "{{ 'a' | center(10 ** 10) }}",
    "center named": "{{ 'a' | center(width=10 ** 10) }}",
    "center mapped": "{{ ['a'] | map('center', 10 ** 10) | list }}",
    "indent": "{{ 'a\nb' | indent(10 ** 10) }}",
    "batch": "{{ [1] | batch(10 ** 9, 0) | list }}",
    "slice": "{{ [1] | slice(10 ** 9) | list }}",
    "replace": "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "replace filter": "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
    "join": "{{ ('b' * 100000).join('a' * 100000) }}",
    "join filter": "{{ range(9999) | map('default', 'b' * 999999, true) | join }}",
    "percent": "{{ '%1000000000d' % 3 }}",
    "star": "{{ '%*d' % (10 ** 9, 3) }}",
    "format": "{{ '{:1000000000}'.format(3) }}",
    "inner format": "{{ '{:{w}}'.format(3, w=10 ** 9) }}",
    "format filter": "{{ '%1000000000d' | format(3) }}",
    "json": "{{ [1] | tojson(indent=10 ** 9) }}",
    "date": "{{ strftime_now('%999999999d') }}",
    "sum": "{{ ([[1]] * 99999) | sum(start=[]) }}",
    "doubled": "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "joined": "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "shared": "{% set n = namespace(s=['a']) %}{% for i in range(60) %}{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s }}",
    "shared tuples": "{% set n = namespace(s=(), t=()) %}{% for i in range(60) %}{% set n.s = (n.s, n.s) %}"
    "{% set n.t = (n.t, n.t) %}{% endfor %}{{ n.s == n.t }}",
    "shared arguments": "{% macro m(n) %}{{ m(n + 1, varargs, varargs) if n < 50 else varargs }}{% endmacro %}"
    "{{ m(0, 1) }}",
    "namespaces": "{% set a = namespace() %}{% set a.b = a %}{{ a }}",
    "namespace list": "{% set a = namespace() %}{% set b = [a] %}",
    "long": " " * 100_001,
}
WRONG = {
    "zero": ("{{ 1 / 0 }}", "division by zero"),
    "type": ("{{ 1 + 'a' }}", "unsupported operand"),
    "include": ("{% include 'x' %}", "no loader"),
    "import": ("{% import 'x' as x %}", "no loader"),
    "extends": ("{% extends 'x' %}", "no loader"),
    "syntax": ("{% for %}", "Expected"),
    "nested": ("{{ " + "(" * 40_000 + " }}", "recursion"),
    "nested loops": ("{% for a in [1] %}" * 3000 + "{% endfor %}" * 3000, "recursion"),
    "inside": ("{{ ''.__class__.__mro__ }}", "unsafe"),
    "bytes": ("{{ (5).to_bytes(10 ** 9, 'big') }}", "unsafe"),
    "translate": ("{{ 'a'.translate({97: 'b'}) }}", "unsafe"),
    "dunder": ("{% set n = namespace(__class__=1) %}", "__class__"),
    "undefined": ("{{ lipsum(10 ** 9) }}", "'lipsum' is undefined"),
    "filter": ("{{ 'a' | wordwrap }}", "No filter named 'wordwrap'"),
}


def _tokenizer(template: object) -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("name", GOOD)
def test_a_good_template_reads_as_in_transformers(name: str, adds: bool) -> None:
    """A character of difference, and the model reads what it was not trained with."""
    tokenizer = _tokenizer(GOOD[name])
    expected = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=adds, tokenize=False)
    assert render(tokenizer, MESSAGES, add_generation_prompt=adds) == expected


def test_a_template_sees_the_names_that_transformers_gives_it() -> None:
    """A new release may add some."""
    theirs, ours = chat_template_utils._compile_jinja_template("").environment, template_module._sandbox()
    assert set(theirs.filters) - set(ours.filters) == set(template_module._NO_FILTERS)
    assert set(theirs.globals) - set(ours.globals) == set(template_module._NO_GLOBALS)
    assert set(theirs.tests) == set(ours.tests)
    assert _tags(theirs.extensions) == _tags(ours.extensions)
    for setting in ("trim_blocks", "lstrip_blocks", "keep_trailing_newline", "autoescape", "undefined"):
        assert getattr(theirs, setting) == getattr(ours, setting)


def _tags(extensions: dict[str, Extension]) -> set[str]:
    return {tag for extension in extensions.values() for tag in extension.tags}


def test_a_key_without_a_value_is_left_out() -> None:
    """As transformers does: a template would write "None"."""
    tokenizer = _tokenizer("{{ messages[0].content is defined }}")
    assert render(tokenizer, [{"role": "user", "content": None}], add_generation_prompt=True) == "False"  # type: ignore[dict-item]


@pytest.mark.parametrize("name", TOO_MUCH)
def test_a_template_cannot_take_much_time_or_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_module, "_SECONDS", 0.2)
    tokenizer = _tokenizer(TOO_MUCH[name])
    began, memory = time.thread_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ConfigError, match=r"chat template .*(limit|more than|deeper|allowed|indents|namespace|sums)"):
        render(tokenizer, MESSAGES, add_generation_prompt=True)
    assert time.thread_time() - began < 4
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 200_000  # KB


@pytest.mark.parametrize("name", WRONG)
def test_a_template_that_does_not_work_is_an_error_with_a_way_out(name: str) -> None:
    source, reason = WRONG[name]
    with pytest.raises(ConfigError, match=f"does not work: .*{reason}.*Ask without it"):
        render(_tokenizer(source), MESSAGES, add_generation_prompt=True)


def test_limits_grow_with_the_messages() -> None:
    """A long prompt is no fault of its template."""
    tokenizer = _tokenizer(GOOD["methods"])
    messages = [{"role": "user", "content": "word " * 400_000}]
    expected = tokenizer.apply_chat_template(messages, tokenize=False)
    assert render(tokenizer, messages, add_generation_prompt=False) == expected


def test_a_long_conversation_stays_within_the_limits() -> None:
    tokenizer = _tokenizer(GOOD["loops"])
    messages = MESSAGES[1:3] * 500
    expected = tokenizer.apply_chat_template(messages, tokenize=False)
    assert render(tokenizer, messages, add_generation_prompt=False) == expected


def test_a_refusal_is_the_template_s_own_words() -> None:
    tokenizer = _tokenizer("{{ raise_exception('Roles must alternate.' + 'a' * 9999) }}")
    with pytest.raises(ConfigError, match=r"refuses these messages: Roles must alternate\.a+…$") as raised:
        render(tokenizer, MESSAGES, add_generation_prompt=True)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize(
    ("template", "reason"),
    [({"tools": "a", "rag": "b"}, "tools, rag, and none is named default"), (5, "of type int")],
)
def test_a_template_that_cannot_be_chosen_is_named(template: object, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        render(_tokenizer(template), MESSAGES, add_generation_prompt=True)


def test_of_several_templates_the_default_is_taken() -> None:
    assert render(_tokenizer({"default": "a", "tool_use": "b"}), MESSAGES, add_generation_prompt=True) == "a"


def test_no_messages_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least one message"):
        render(_tokenizer("a"), [], add_generation_prompt=True)
