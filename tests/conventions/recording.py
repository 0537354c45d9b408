"""Runs the body of an asset or check on names instead of values, and writes down what it calls with what.

No core function runs: each is replaced by one that notes its arguments by the names of its real parameters,
so that a call which the real function would refuse is refused here. A body that decides by ``if`` on a value
runs once for each way.
"""

import ast
import builtins
import dis
import functools
import importlib
import inspect
import sys
import textwrap
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

#: Built-in functions that a body applies to values; everything else of Python stays as it is.
NOTED = ("len", "int", "float", "bool", "str", "list", "tuple", "sorted", "any", "all", "set")
#: From this many characters on a call is written with one argument to a line.
LONG = 100


@dataclass
class Calls:
    """What one run of a body did, in order."""

    made: list["Name"] = field(default_factory=list)
    decided: list[tuple[str, bool]] = field(default_factory=list)
    plan: Sequence[bool] = ()
    numbered: dict[str, int] = field(default_factory=dict)


class Name(str):
    """A value of which only the expression is known that it comes from.

    Attributes (read by :func:`own`): ``calls``; ``real``, the thing that the expression stands for in ``assets/``
    or the core; ``used``, whether something was done with it; ``parts``, callee and arguments of a call; ``core``,
    whether that is a call with a line of its own.
    """

    @classmethod
    def of(
        cls, text: str, calls: Calls, real: Any = None, parts: Sequence[str] = (), core: bool = False
    ) -> "Name":
        made = super().__new__(cls, text)
        for name, value in {
            "calls": calls,
            "real": real,
            "used": False,
            "parts": parts,
            "core": core,
        }.items():
            object.__setattr__(made, name, value)
        return made

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            return super().__getattribute__(name)
        real = own(self, "real")
        if real is not None:
            # What the real thing does not have ends here.
            real = getattr(real, name)
        return noted(f"{used(self)}.{name}", real, own(self, "calls"))

    def __call__(self, *given: Any, **named: Any) -> "Name":
        calls, real = own(self, "calls"), own(self, "real")
        parts = (used(self), *_arguments(real, given, named))
        module = getattr(real, "__module__", None) or ""
        core = inspect.isfunction(real) and (
            (module.startswith("e2i_dagster.") and ".config" not in module and ".policy_files" not in module)
            or (module.startswith("resources.") and len(parts) > 1)
        )
        text = f"{parts[0]}({', '.join(parts[1:])})"
        if core:
            number = calls.numbered[parts[0]] = calls.numbered.get(parts[0], 0) + 1
            text = f"<{parts[0]}>" if number == 1 else f"<{parts[0]} {number}>"
        calls.made.append(Name.of(text, calls, None, parts, core))
        return calls.made[-1]

    def __getitem__(self, key: Any) -> "Name":
        return Name.of(f"{used(self)}[{text_of(key)}]", own(self, "calls"))

    def __iter__(self) -> Iterator["Name"]:
        text, calls, frame = used(self), own(self, "calls"), sys._getframe(1)
        code = frame.f_code.co_code
        if dis.opname[code[frame.f_lasti]] == "UNPACK_SEQUENCE":
            return iter([Name.of(f"{text}[{place}]", calls) for place in range(code[frame.f_lasti + 1])])
        return iter([Name.of(f"each of {text}", calls)])

    def __bool__(self) -> bool:
        calls = own(self, "calls")
        place = len(calls.decided)
        answer = calls.plan[place] if place < len(calls.plan) else True
        calls.decided.append((used(self), answer))
        return answer

    def __enter__(self) -> "Name":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def __format__(self, how: str) -> str:
        return f"{used(self)}:{how}" if how else used(self)

    def __invert__(self) -> "Name":
        return Name.of(f"~{used(self)}", own(self, "calls"))

    def __hash__(self) -> int:
        return hash(str.__str__(self))


def _operator(symbol: str) -> Callable[[Any, Any], Any]:
    def apply(left: Any, right: Any) -> Name:
        calls = own(left if isinstance(left, Name) else right, "calls")
        return Name.of(f"({text_of(left)} {symbol} {text_of(right)})", calls)

    return apply


for _name, _symbol in {
    "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "add": "+", "sub": "-", "mul": "*",
    "truediv": "/", "and": "&", "or": "|",
}.items():  # fmt: skip
    setattr(Name, f"__{_name}__", _operator(_symbol))


def own(name: Name, attribute: str) -> Any:
    """What ``name`` itself carries; its attributes are further names."""
    return object.__getattribute__(name, attribute)


def used(name: Name) -> str:
    """The expression, noting that something is done with it."""
    object.__setattr__(name, "used", True)
    return str.__str__(name)


def noted(text: str, real: Any, calls: Calls) -> Any:
    """What a body gets for the real thing: a name for what can be called or looked into, constants as they are."""
    if isinstance(real, str | int | float | bytes | tuple | frozenset):
        return real
    return Name.of(text, calls, real)


def text_of(value: Any) -> str:
    """``value`` as it is written in the table."""
    if isinstance(value, Name):
        return used(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{text_of(key)}: {text_of(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple | types.GeneratorType):
        return f"[{', '.join(map(text_of, value))}]"
    if inspect.isfunction(value):
        calls, names = Calls(), [*inspect.signature(value).parameters]
        function = value if value.__globals__.get("noted_here") else rebuilt(value, calls, {})
        return f"lambda {', '.join(names)}: {text_of(function(*(Name.of(name, calls) for name in names)))}"
    return repr(value)


def _arguments(real: Any, given: Sequence[Any], named: Mapping[str, Any]) -> Iterator[str]:
    """The arguments of a call of ``real``, by the names of its parameters where it has a signature."""
    if real is not None and not inspect.isbuiltin(real):
        signature = inspect.signature(real)
        method = inspect.isfunction(real) and next(iter(signature.parameters), "") == "self"
        bound = signature.bind(*([None] if method else []), *given, **named).arguments
        if not any(
            one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD) for one in signature.parameters.values()
        ):
            yield from (f"{name}={text_of(value)}" for name, value in bound.items() if name != "self")
            return
    yield from map(text_of, given)
    yield from (f"{name}={text_of(value)}" for name, value in named.items())


def ways(body: Callable[..., Any]) -> Iterator[list[str]]:
    """The lines of each way through ``body``: what it decided, what it called, what it returned."""
    left: list[tuple[bool, ...]] = [()]
    while left:
        plan = left.pop()
        calls = Calls(plan=plan)
        wanted = inspect.signature(body).parameters
        arguments = {name: Name.of(name, calls, _resource(one.annotation)) for name, one in wanted.items()}
        answer = rebuilt(body, calls, {})(**arguments)
        lines = [f"if {'' if way else 'not '}{condition}" for condition, way in calls.decided]
        for one in calls.made:
            # A call is shown where it is the core's, or where nothing was done with its answer.
            if one is not answer and (own(one, "core") or not own(one, "used")):
                lines += _written(own(one, "parts"))
        parts = own(answer, "parts") if isinstance(answer, Name) else ()
        yield [*lines, *_written(parts, "-> ")] if parts else [*lines, f"-> {text_of(answer)}"]
        left += [
            (*(way for _, way in calls.decided[:place]), False)
            for place in range(len(plan), len(calls.decided))
        ]


def _written(parts: Sequence[str], before: str = "") -> list[str]:
    line = f"{before}{parts[0]}({', '.join(parts[1:])})"
    return [line] if len(line) <= LONG else [f"{before}{parts[0]}", *(f"    {one}" for one in parts[1:])]


def _resource(annotation: Any) -> Any:
    """The class of a resource, whose methods a body may call; None for anything else."""
    inner = (
        annotation if inspect.isclass(annotation) else next(iter(getattr(annotation, "__args__", ())), None)
    )
    return inner if inspect.isclass(inner) and inner.__module__.startswith("resources.") else None


def rebuilt(function: Callable[..., Any], calls: Calls, made: dict[Any, Any]) -> Callable[..., Any]:
    """``function`` with names for what it reaches: functions beside it run, those of the core are noted."""
    if function in made:
        return made[function]
    reached: dict[str, Any] = {
        "noted_here": True,
        "__builtins__": {
            **vars(builtins),
            **{name: Name.of(name, calls) for name in NOTED},
            **{f"_{name}": functools.partial(helper, calls) for name, helper in HELPERS.items()},
            "__import__": functools.partial(_imported, calls),
        },
    }
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    closure = dict(zip(function.__code__.co_freevars, cells, strict=True))
    if function.__name__ == "<lambda>":
        copied = types.FunctionType(
            function.__code__, reached, "lambda", function.__defaults__, function.__closure__
        )
    else:
        copied = _readable(function, reached, closure)
    made[function] = copied
    for name, value in function.__globals__.items():
        if name.startswith("__"):
            continue
        beside = inspect.isfunction(value) and value.__module__.startswith("assets.")
        if beside and value.__module__ not in ("assets.execution", "assets.metadata", "assets.stage"):
            reached[name] = rebuilt(inspect.unwrap(value), calls, made)
        else:
            reached[name] = noted(name, value, calls)
    return copied


def _readable(
    function: Callable[..., Any], reached: dict[str, Any], closure: Mapping[str, Any]
) -> Callable[..., Any]:
    """``function`` compiled again, so that it also writes down what Python decides without asking a value."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    assert isinstance(tree, ast.FunctionDef)
    tree.decorator_list, tree.returns = [], None
    for argument in (*tree.args.args, *tree.args.kwonlyargs):
        argument.annotation = None
    outer = ast.parse(f"def outer({', '.join(closure)}):\n    return {tree.name}")
    (wrapper,) = outer.body
    assert isinstance(wrapper, ast.FunctionDef)
    wrapper.body.insert(0, _Rewritten().visit(tree))
    exec(compile(ast.fix_missing_locations(outer), f"<{function.__name__}>", "exec"), reached)
    return reached.pop("outer")(**closure)


class _Rewritten(ast.NodeTransformer):
    """``and``, ``or``, ``not``, ``is``, ``in``, ``x if c else y``, ``join`` and filters as calls of :data:`HELPERS`."""

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        self.generic_visit(node)
        word = "and" if isinstance(node.op, ast.And) else "or"
        return _call("either", ast.Constant(word), *map(_later, node.values))

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        self.generic_visit(node)
        return _call("negated", node.operand) if isinstance(node.op, ast.Not) else node

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        words = {ast.Is: "is", ast.IsNot: "is not", ast.In: "in", ast.NotIn: "not in"}
        word = words.get(type(node.ops[0]))
        return node if word is None else _call("compared", ast.Constant(word), node.left, node.comparators[0])

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        self.generic_visit(node)
        return _call("choice", node.test, _later(node.body), _later(node.orelse))

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        text = node.func.value if isinstance(node.func, ast.Attribute) else None
        if (
            isinstance(text, ast.Constant)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "join"
        ):
            return _call("joined", text, *node.args)
        return node

    def visit_comprehension(self, node: ast.comprehension) -> ast.AST:
        self.generic_visit(node)
        node.ifs = [_call("where", one) for one in node.ifs]
        return node


def _call(helper: str, *arguments: ast.expr) -> ast.expr:
    return ast.Call(ast.Name(f"_{helper}", ast.Load()), [*arguments], [])


def _later(node: ast.expr) -> ast.expr:
    nothing = ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])
    return ast.Lambda(nothing, node)


def _either(calls: Calls, word: str, *operands: Callable[[], Any]) -> Any:
    first = operands[0]()
    if isinstance(first, Name):
        return Name.of(
            f"({f' {word} '.join([used(first), *(text_of(one()) for one in operands[1:])])})", calls
        )
    rest = operands[1:]
    if not rest or bool(first) is (word == "or"):
        return first
    return _either(calls, word, *rest)


def _negated(calls: Calls, value: Any) -> Any:
    return Name.of(f"not {used(value)}", calls) if isinstance(value, Name) else not value


def _compared(calls: Calls, word: str, left: Any, right: Any) -> Any:
    if isinstance(left, Name) or isinstance(right, Name):
        return Name.of(f"({text_of(left)} {word} {text_of(right)})", calls)
    if word in ("is", "is not"):
        return (left is right) is (word == "is")
    return (left in right) is (word == "in")


def _choice(calls: Calls, test: Any, yes: Callable[[], Any], no: Callable[[], Any]) -> Any:
    if not isinstance(test, Name):
        return yes() if test else no()
    return Name.of(f"({text_of(yes())} if {used(test)} else {text_of(no())})", calls)


def _joined(calls: Calls, text: str, values: Any) -> Name:
    return Name.of(f"{text!r}.join({text_of(values if isinstance(values, Name) else list(values))})", calls)


def _where(calls: Calls, condition: Any) -> bool:
    if isinstance(condition, Name):
        calls.made.append(Name.of("where", calls, None, ("where", used(condition))))
        return True
    return bool(condition)


HELPERS: Mapping[str, Callable[..., Any]] = {
    "either": _either,
    "negated": _negated,
    "compared": _compared,
    "choice": _choice,
    "joined": _joined,
    "where": _where,
}


def _imported(calls: Calls, name: str, *given: Any) -> Any:
    """The module ``name`` with a name for each thing that is wanted of it."""
    names = given[2] or () if len(given) > 2 else ()
    module = importlib.import_module(name)
    if not name.startswith("e2i_dagster"):
        return module
    return types.SimpleNamespace(**{one: noted(one, getattr(module, one), calls) for one in names})
