"""Checks of types and shapes in all tests, by jaxtyping and beartype, at a smaller cost than theirs.

What they do at every import and every call took a quarter to a third of the time of the files that were measured. Here

1. beartype compiles the checks of a function when it is called for the first time. Most functions of the library are
   not called in the process that runs a test file.
2. functions without arrays in their signature get checks of types alone, without those of shapes.
3. arguments are checked once per call. jaxtyping checks them again together with the result.
4. checks of a nested function are made once. It is a new object at each call of the function around it, for which
   beartype would compile them anew.
"""

import functools
import inspect
import threading
from collections.abc import Callable
from types import CellType, FunctionType
from typing import Any, get_args

import jaxtyping
from beartype import BeartypeConf, beartype

# accept an int for a float, as PEP 484 does
_decorate = beartype(conf=BeartypeConf(is_pep484_tower=True))
_jaxtyped = jaxtyping.jaxtyped


def install(package: str) -> None:
    """Check all functions of a package that is imported later."""
    # modules that the hook rewrites look the decorator up in jaxtyping
    jaxtyping.jaxtyped = _checked
    jaxtyping.install_import_hook(package, f"{__name__}.{check.__name__}")


def check(function: FunctionType) -> Callable[..., Any]:
    """Returns a function with checks of types. jaxtyping calls it with stand-ins of the library's functions: one
    with the arguments, and one with the arguments and the result."""
    code = function.__code__
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    # the second has the result as its last argument, under a name that starts with `ret`
    if names and names[-1].startswith("ret") and "return" in function.__annotations__:
        function.__annotations__ = {"return": function.__annotations__["return"]}
    return _lazily(function)


def _lazily(function: FunctionType) -> Callable[..., Any]:
    checked: Callable[..., Any] | None = None

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal checked
        if checked is None:
            checked = _decorate(function)
        return checked(*args, **kwargs)

    return call


def _checked(*, typechecker: Any) -> Callable[[Any], Any]:
    """Replaces `jaxtyping.jaxtyped`. Returns a decorator of functions and classes."""

    def add_checks(function: FunctionType) -> Callable[..., Any]:
        return _jaxtyped(function, typechecker=typechecker) if _has_arrays(function) else _lazily(function)

    def decorate(decorated: Any) -> Any:
        if not isinstance(decorated, FunctionType):
            return _jaxtyped(decorated, typechecker=typechecker)
        return (
            _nested(decorated, add_checks) if "<locals>" in decorated.__qualname__ else add_checks(decorated)
        )

    return decorate


_stand_ins: dict[Any, tuple[threading.local, Callable[..., Any]]] = {}


def _nested(
    function: FunctionType, add_checks: Callable[[FunctionType], Callable[..., Any]]
) -> Callable[..., Any]:
    """Returns a nested function with checks, which all functions of the same code and annotations share."""
    key = function.__code__, tuple(function.__annotations__.items())
    try:
        known = key in _stand_ins
    except TypeError:
        # annotations that cannot be compared, such as P.args of a ParamSpec
        return add_checks(function)
    if not known:
        _stand_ins[key] = _stand_in(function, add_checks)
    called, checked = _stand_ins[key]

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        functions = called.__dict__.setdefault("functions", [])
        size = len(functions)
        functions.append(function)
        try:
            return checked(*args, **kwargs)
        finally:
            # the stand-in has taken the function, unless the arguments were refused
            del functions[size:]

    return call


def _stand_in(
    function: FunctionType, add_checks: Callable[[FunctionType], Callable[..., Any]]
) -> tuple[threading.local, Callable[..., Any]]:
    """Returns a function that checks like `function` and then calls the one that this thread put last on a list."""
    called = threading.local()

    def call(*args: Any, **kwargs: Any) -> Any:
        return called.functions.pop()(*args, **kwargs)

    code = function.__code__
    # only the signature of the function is needed; the values that it refers to would stay in memory
    cells = tuple(CellType() for _ in code.co_freevars)
    hollow = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, cells)
    hollow.__kwdefaults__ = function.__kwdefaults__
    hollow.__annotations__ = function.__annotations__
    # with the globals of the function, in which names of annotations are looked up
    own = FunctionType(call.__code__, function.__globals__, function.__name__, None, call.__closure__)
    functools.update_wrapper(own, hollow)
    own.__qualname__, own.__module__ = function.__qualname__, function.__module__
    return called, add_checks(own)


def _has_arrays(function: FunctionType) -> bool:
    """Whether an annotation of the function names an array, or may name one because it is a string."""
    return any(map(_names_array, function.__annotations__.values()))


def _names_array(annotation: Any) -> bool:
    if isinstance(annotation, str):
        return True
    if inspect.isclass(annotation) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    parts = annotation if isinstance(annotation, list | tuple) else get_args(annotation)
    return any(map(_names_array, parts))
