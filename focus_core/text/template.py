"""Chat templates: messages become the text that a model was trained to continue.

A template is a program that comes with a model folder, from anybody. It runs in a sandbox in which every value has a
known size and every step is counted. An operation whose result would be too large is refused before it runs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache, wraps
from itertools import chain
from math import inf
from string import Formatter
from time import thread_time
from typing import Any, cast

from jinja2 import Template, TemplateError, nodes, pass_eval_context
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import EvalContext
from jinja2.parser import Parser
from jinja2.runtime import Context, markup_join, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer
from transformers import PreTrainedTokenizerBase

from focus_core.errors import ConfigError, first_line

_LONGEST_TEMPLATE = 100_000  # characters
# What a rendering may use, and how much more for each character of its messages.
_OUTPUT, _OUTPUT_PER_CHARACTER = 200_000, 4  # characters
_WORK, _WORK_PER_CHARACTER = 4_000_000, 50  # characters and elements that are made, and steps
_SECONDS, _SECONDS_PER_CHARACTER = 1.0, 5e-6  # of the thread's processor time, so that a busy machine refuses nothing
_DEEPEST_CALL = 64
_LONGEST_NUMBER = 10_000  # bits
_LONGEST_DATE = 100  # characters of a date's format
_WIDEST_INDENT = 16
_LONGEST_REASON = 300  # characters of a template's own words in an error of ours

_Calls = dict[str, Callable[..., Any]]

_WAY_OUT = "Ask without it (chat_template=False, --raw), or set another one as the tokenizer's chat_template."

_METHODS: dict[type, frozenset[str]] = {
    str: frozenset(
        "capitalize casefold center count endswith find format format_map index isalnum isalpha isascii isdecimal "
        "isdigit isidentifier islower isnumeric isprintable isspace istitle isupper join ljust lower lstrip partition "
        "removeprefix removesuffix replace rfind rindex rjust rpartition rsplit rstrip split splitlines startswith "
        "strip swapcase title upper zfill".split()
    ),
    list: frozenset(["count", "index"]),
    tuple: frozenset(["count", "index"]),
    dict: frozenset(["copy", "get", "items", "keys", "values"]),
    int: frozenset(["bit_length"]),
    float: frozenset(["is_integer"]),
}
_NO_FILTERS = ("pprint", "striptags", "urlize", "wordwrap", "xmlattr")  # their cost has no simple bound
_NO_GLOBALS = ("cycler", "joiner", "lipsum")
_CONTAINERS: tuple[type, ...] = (list, tuple, set, frozenset, type({}.keys()), type({}.values()), type({}.items()))
_SCOPE = ("_loop_vars", "_block_vars")  # what jinja adds to a call inside of a loop or a block
_WIDE = re.compile(r"\d{4}")
_WIDE_PERCENT = re.compile(r"%[^a-zA-Z%]*(\*|\d{4})")


def render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool
) -> str:
    """The text of `messages`, character for character as transformers' `apply_chat_template` writes it.

    Raises:
        ConfigError: the template refuses these messages, does not run, or passes one of its limits
    """
    chat = [{key: str(value) for key, value in message.items() if value is not None} for message in messages]
    if not chat:
        raise ConfigError("A chat template needs at least one message.")
    source = _source(tokenizer)
    given = sum(len(value) + 1 for message in chat for value in message.values())
    budget = _Budget(_WORK + _WORK_PER_CHARACTER * given)
    former = _current.set(budget)
    try:
        template = _compiled(source)
        budget.deadline = thread_time() + _SECONDS + _SECONDS_PER_CHARACTER * given
        pieces = template.generate(
            messages=chat,
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **tokenizer.special_tokens_map,
        )
        return _written(pieces, limit=_OUTPUT + _OUTPUT_PER_CHARACTER * given)
    except _Refusal as refusal:
        raise ConfigError(f"The model's chat template refuses these messages: {_reason(refusal)}") from refusal
    except Exception as error:  # a program can fail in any way
        raise ConfigError(f"The model's chat template does not work: {_reason(error)}. {_WAY_OUT}") from error
    finally:
        _current.reset(former)


def _source(tokenizer: PreTrainedTokenizerBase) -> str:
    try:
        source = tokenizer.get_chat_template()
    except ValueError as error:
        names = ", ".join(map(str, tokenizer.chat_template or ()))
        raise ConfigError(f"The model has chat templates {names}, and none is named default. {_WAY_OUT}") from error
    if not isinstance(source, str):
        raise ConfigError(f"The model's chat template is of type {type(source).__name__}, not a text. {_WAY_OUT}")
    if len(source) > _LONGEST_TEMPLATE:
        lengths = f"{len(source):,} characters; {_LONGEST_TEMPLATE:,} are allowed"
        raise ConfigError(f"The model's chat template has {lengths}. {_WAY_OUT}")
    return source


def _written(pieces: Iterable[str], *, limit: int) -> str:
    written, length = [], 0
    for piece in pieces:
        written.append(piece)
        length += len(piece)
        if length > limit:
            raise _Exceeded(f"it writes more than {limit:,} characters")
    return "".join(written)


def _reason(error: Exception) -> str:
    reason = first_line(error).rstrip(".")
    return reason if len(reason) <= _LONGEST_REASON else f"{reason[:_LONGEST_REASON]}…"


# --- the budget -------------------------------------------------------------------------------------------------------


class _Exceeded(Exception):
    """A template passes one of its limits."""


class _Refusal(TemplateError):
    """A template calls `raise_exception`."""


@dataclass
class _Budget:
    """What one rendering may still use.

    Attributes:
        left: characters and elements that may still be made, and steps
        deadline: in processor time of the thread; reading the template does not count
        depth: calls inside of calls
    """

    left: int
    deadline: float = inf
    depth: int = 0
    # The sandbox never changes a container, so each is measured once. It is kept, so that no other gets its identity.
    _sizes: dict[int, tuple[Any, int]] = field(default_factory=dict)

    def count(self, size: int = 0) -> None:
        """Count a step that made `size` characters or elements."""
        self.left -= 1 + size
        self.require(0)
        if thread_time() > self.deadline:
            raise _Exceeded("it takes longer than its time limit")

    def require(self, size: int) -> None:
        """Refuse a value of `size` characters or elements before it is made."""
        if size > self.left:
            raise _Exceeded("it makes more than its memory limit")

    def made(self, value: Any) -> Any:
        """`value`, counted."""
        self.count(0 if isinstance(value, Namespace) else self.size(value))
        return value

    def size(self, value: Any) -> int:
        """Characters and elements of a value; those that it holds twice count twice, as they do when it is printed."""
        if isinstance(value, str | bytes):
            return 1 + len(value)
        if isinstance(value, int) and value.bit_length() > _LONGEST_NUMBER:
            raise _Exceeded("it makes a number beyond its limit")
        if isinstance(value, range):
            return 1 + len(value)
        if isinstance(value, Namespace):
            raise _Exceeded("it prints a namespace or puts it into another value")
        if not isinstance(value, (*_CONTAINERS, dict)):
            return 1
        if id(value) not in self._sizes:
            parts = chain(value, value.values()) if isinstance(value, dict) else cast(Iterable[Any], value)
            self._sizes[id(value)] = (value, 1 + sum(map(self.size, parts)))
        size = self._sizes[id(value)][1]
        self.require(size)
        return size


_current: ContextVar[_Budget] = ContextVar("_current")


# --- the sandbox ------------------------------------------------------------------------------------------------------


class _CountMore(NodeTransformer):
    """Rewrites a template so that rounds of loops and values of several parts are counted, as calls are."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802, jinja's way to name visitors
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_call_of("counted", [], node)))
        if node.test is not None:
            node.test = nodes.And(_call_of("counted", [], node), node.test, lineno=node.lineno)
        return node

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        return self._literal(node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        return self._literal(node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        return self._literal(node) if node.ctx == "load" else node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call_of("joined", node.nodes, node)

    def _literal(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        constant = all(isinstance(child, nodes.Const) for child in node.iter_child_nodes())
        return node if constant else _call_of("counted", [node], node)


def _call_of(name: str, arguments: list[nodes.Expr], near: nodes.Node) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(name), arguments, [], None, None, lineno=near.lineno)


class _Compiler(CodeGenerator):
    def visit_Template(self, node: nodes.Template, frame: Frame | None = None) -> None:  # noqa: N802
        super().visit_Template(_CountMore().visit(node), frame)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja as transformers sets it up for chat templates, and counted."""

    code_generator_class = _Compiler
    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # nothing is computed ahead of the counted run
            finalize=lambda value: _current.get().made(value),
            extensions=[_GenerationBlock, loopcontrols],
        )
        self.filters["tojson"] = _to_json
        for name in _NO_FILTERS:
            del self.filters[name]
        for name in _NO_GLOBALS:
            del self.globals[name]
        filters, tests = cast(_Calls, self.filters), cast(_Calls, self.tests)
        filters |= {name: _counting(name, call) for name, call in filters.items()}
        tests |= {name: _counting(name, call) for name, call in tests.items()}
        self.globals["dict"] = _Dictionary()
        self.globals["namespace"] = _Namespace
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """The text of a macro or a block."""
        texts = list(parts)
        _current.get().require(sum(map(len, texts)))
        return "".join(texts)

    @staticmethod
    def counted(value: Any = True) -> Any:
        """A round of a loop or a literal, counted by `call`."""
        return value

    @staticmethod
    @pass_eval_context
    def joined(context: EvalContext, *parts: Any) -> str:
        """What `~` makes of parts whose size `call` has checked."""
        return (markup_join if context.autoescape else str_join)(parts)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        allowed = next((names for kind, names in _METHODS.items() if isinstance(obj, kind)), None)
        return (allowed is None or attr in allowed) and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format` and `str.format_map`, with a check of the size."""
        run = super().wrap_str_format(value)
        if run is None:
            return None

        def formatted(*args: Any, **kwargs: Any) -> str:
            _current.get().require(_formatted_size(str(value.__self__), [*args, *kwargs.values()]))
            return run(*args, **kwargs)

        return formatted

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        budget = _current.get()
        given = [*args, *(value for name, value in kwargs.items() if name not in _SCOPE)]
        budget.count()
        budget.require(sum(budget.size(value) for value in given if not isinstance(value, Namespace)))
        text, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(text, str) and name in _SIZES:
            # `", ".join(values)` is `values | join(", ")`
            budget.require(_SIZES[name](*args, text) if name == "join" else _SIZES[name](text, *args))
        budget.depth += 1
        try:
            if budget.depth > _DEEPEST_CALL:
                raise _Exceeded(f"its calls are nested deeper than {_DEEPEST_CALL}")
            return budget.made(super().call(context, obj, *args, **kwargs))
        finally:
            budget.depth -= 1

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = _current.get()
        budget.require(_result_size(operator, left, right))
        return budget.made(super().call_binop(context, operator, left, right))


def _counting(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """A filter or a test whose calls and results are counted."""
    sized = _SIZES.get(name)
    first = int(hasattr(call, "jinja_pass_arg"))  # jinja's own argument, of some

    @wraps(call)
    def counting(*args: Any, **kwargs: Any) -> Any:
        budget = _current.get()
        budget.count()
        if sized is not None:
            if name == "join" and isinstance(args[first], Iterator):  # its elements are not known yet
                args = (*args[:first], list(args[first]), *args[first + 1 :])
            budget.require(sized(*args[first:], **kwargs))
        return budget.made(call(*args, **kwargs))

    return counting


@lru_cache(maxsize=1)
def _sandbox() -> _Sandbox:
    return _Sandbox()


@lru_cache(maxsize=16)
def _compiled(source: str) -> Template:
    return _sandbox().from_string(source)


# --- how large a result will be, at most ------------------------------------------------------------------------------


def _result_size(operator: str, left: Any, right: Any) -> int:
    size = _current.get().size
    if operator == "%" and isinstance(left, str):
        return _percent_size(left, right)
    if operator == "*" and isinstance(left, int) != isinstance(right, int):
        value, number = (right, left) if isinstance(left, int) else (left, right)
        return size(value) * max(number, 1)
    if operator == "**" and isinstance(left, int) and isinstance(right, int):
        if left.bit_length() * abs(right) > _LONGEST_NUMBER:
            raise _Exceeded("it makes a number beyond its limit")
        return 1
    return size(left) + size(right)


def _padded_size(value: Any, *numbers: Any, **named: Any) -> int:
    """Of a filter or method to which a number says how much is added to each character, line or element."""
    size = _current.get().size(value)
    for given in (*numbers, *named.values()):
        if isinstance(given, int):
            size *= max(abs(given), 1)
        elif isinstance(given, str):
            size *= 1 + len(given)
    return size


def _replaced_size(value: Any, old: Any, new: Any, count: Any = None) -> int:
    text = str(value)
    return len(text) + text.count(str(old)) * len(str(new))


def _joined_size(values: Any, d: Any = "", attribute: Any = None) -> int:
    size = _current.get().size(values)
    return size * (1 + len(str(d)))


def _percent_size(template: str, *values: Any, **named: Any) -> int:
    if _WIDE_PERCENT.search(template):
        raise _Exceeded("it formats a text with more width than its limit")
    return len(template) + template.count("%") * _current.get().size([*values, *named.values()])


def _formatted_size(template: str, values: list[Any]) -> int:
    specs = [spec or "" for _, _, spec, _ in Formatter().parse(template)]
    if any("{" in spec or _WIDE.search(spec) for spec in specs):
        raise _Exceeded("it formats a text with more width than its limit")
    return len(template) + len(specs) * _current.get().size(values)


def _summed_size(values: Any, attribute: Any = None, start: Any = 0) -> int:
    if not isinstance(start, int | float):
        raise _Exceeded("it sums up other values than numbers")
    return 1


_SIZES: dict[str, Callable[..., int]] = {
    **dict.fromkeys("batch center indent ljust rjust round slice truncate zfill".split(), _padded_size),
    "replace": _replaced_size,
    "join": _joined_size,
    "format": _percent_size,
    "sum": _summed_size,
}


# --- what transformers adds to jinja ----------------------------------------------------------------------------------


class _GenerationBlock(Extension):
    """`{% generation %}` marks what the model writes; the text stays as it is."""

    tags = {"generation"}  # noqa: RUF012, jinja's own type

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("text"), [], [], body).set_lineno(line)

    @staticmethod
    def text(caller: Callable[[], str]) -> str:
        return caller()


class _Namespace(Namespace):
    """Without names that begin with an underscore, and without other namespaces."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that an attribute may be named self
        self, values = args[0], dict(*args[1:], **kwargs)
        Namespace.__init__(self)
        for name, value in values.items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise SecurityError(f"a namespace may not have the attribute {name!r}")
        _current.get().size(value)
        super().__setitem__(name, value)


class _Dictionary:
    """The function `dict`, and not the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _to_json(
    x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    if len(str(separators)) > _LONGEST_DATE or (isinstance(indent, int) and indent > _WIDEST_INDENT):
        raise _Exceeded(f"it indents JSON by more than {_WIDEST_INDENT}")
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    budget, pieces = _current.get(), []
    for piece in encoder.iterencode(x):
        budget.count(len(piece))
        pieces.append(piece)
    return "".join(pieces)


def _raise_exception(message: Any) -> None:
    raise _Refusal(message)


def _strftime_now(format: str) -> str:
    if len(format) > _LONGEST_DATE or _WIDE.search(format):
        raise _Exceeded("it formats a date with more width than its limit")
    return datetime.now().strftime(format)
