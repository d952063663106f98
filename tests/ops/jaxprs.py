"""What a function does, read from its jaxpr."""

from collections import Counter

import jax


def equations(function, *arguments):
    """Every equation of the function's jaxpr, those of nested jaxprs included."""
    return list(_walk(jax.make_jaxpr(function)(*arguments).jaxpr))


def primitives(function, *arguments):
    return Counter(equation.primitive.name for equation in equations(function, *arguments))


def dot_precisions(function, *arguments):
    dots = [e for e in equations(function, *arguments) if e.primitive.name == "dot_general"]
    return [dot.params["precision"] for dot in dots]


def largest_intermediate(function, *arguments):
    """Most entries that any array on the way has."""
    return max(variable.aval.size for equation in equations(function, *arguments) for variable in equation.outvars)


def _walk(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for item in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(item, "jaxpr", item)  # a closed jaxpr holds its jaxpr
                if hasattr(inner, "eqns"):
                    yield from _walk(inner)
