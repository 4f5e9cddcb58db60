"""A network read as the list of equations it consists of, whatever library it was written with.

JAX can write any pure function down as a sequence of primitive operations. Two things are read off
that list here, without hooks and without a word from the network:

* ``decompose``: the biases of FullGrad. An equation y = e(x) near its input is its derivative
  times x plus a rest, r = e(x) - e'(x) x. The rest of an addition of a constant is that constant;
  multiplications by weights, ReLU, pooling and sums have none; a cap at 6 has one where it caps.
  Summed over all equations, gradient × rest and gradient × input give the function's value exactly.
* ``at_layer``: the network cut in two at a place that was given a name with
  ``jax.ad_checkpoint.checkpoint_name``, as the networks of ``models`` name their blocks.

Loops (``scan``, ``while``) and branches count as one equation each. A function with a hand-written
derivative is one equation; only if it has just a backward rule and biases inside, it is looked
into, and differentiated as it is written.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend import core
from jaxtyping import Array, Float

from wsss_jax.config import lookup
from wsss_jax.errors import UserError
from wsss_jax.types import Leaf, Scorer

CALLS = frozenset({"jit", "pjit", "closed_call", "core_call", "checkpoint", "remat"})
"""Equations that only hold other equations: always looked into."""

ONE_MOVES = frozenset({"mul", "div", "dot_general", "conv_general_dilated"})
"""No rest where exactly one operand depends on the image."""

ALL_MOVE = frozenset(
    {"add", "sub", "add_any", "max", "min", "concatenate", "stack", "pad", "select_n"}
)
"""No rest where every operand depends on the image or is zero."""

FIRST_MOVES = frozenset(
    {
        "abs", "broadcast_in_dim", "convert_element_type", "copy", "cumsum", "dynamic_slice",
        "gather", "name", "neg", "reduce_max", "reduce_min", "reduce_sum", "reduce_window_max",
        "reduce_window_sum", "reshape", "rev", "sharding_constraint", "slice", "split", "squeeze",
        "tile", "transpose", "unstack",
    }
)  # fmt: skip
"""No rest where only the first operand depends on the image."""

CUSTOM = frozenset({"custom_jvp_call", "custom_vjp_call"})
"""Functions with a derivative of their own: no rest where what they hold has none."""

KEEP_ZERO = frozenset({"broadcast_in_dim", "convert_element_type", "copy", "reshape"})

ADDITIONS = frozenset({"add", "sub"})
"""Equations whose rest is an explicit bias: an array that the network adds."""

NUMBER = "number"
"""Name of the rest of an addition of a plain number of the code, as in 1 - gate: no bias."""


Shape: TypeAlias = Float[Array, "b h w n"] | jax.ShapeDtypeStruct
"""Images, or only their shape and type."""


V = TypeVar("V")
"""What an equation list is walked through with: arrays, or arrays and what is known of them."""


class Rest(NamedTuple):
    """What one equation adds beyond its derivative times its input, and which equation it is."""

    equation: str
    value: Leaf


class Decomposition(NamedTuple):
    """A function's value, the rests of its equations, and the gradients at x and at each rest.

    pull_back: weights of the outputs to (gradient at x, one gradient per rest).
    """

    value: Leaf
    rests: list[Rest]
    pull_back: Callable[[Leaf], tuple[Leaf, list[Leaf]]]


class Value(NamedTuple):
    """A value on its way: does it depend on x, is it known to be zero? (array: None if unknown)"""

    array: Leaf
    moves: bool = False
    zero: bool = False


def decompose(function: Callable[[Leaf], Leaf], x: Float[Array, "*s"]) -> Decomposition:
    """The rests of all equations of a function at x, and the gradients to weigh them with.

    The sum of x × gradient and of every rest × gradient is the value (times the weights pulled
    back), whatever the function: the identity holds equation by equation. Memory is that of the
    function's gradient, twice. Rests are float32; gradients have the types of what they are of.
    """
    closed = jax.make_jaxpr(function)(x)
    names: list[str] = []

    def run(x: Leaf, nudges: list[Leaf] | None) -> tuple[Leaf, list[Leaf]]:
        names.clear()
        rests: list[Leaf] = []

        def visit(equation: core.JaxprEqn, ins: list[Value]) -> list[Value]:
            if not any(v.moves for v in ins) or _adds_nothing(equation, ins):
                return followed(equation, ins, alone(equation, [v.array for v in ins]))
            outs, found = _with_rests(equation, ins)
            for n, rest in found.items():
                if nudges is not None:
                    outs[n] = outs[n] + nudges[len(rests)].astype(outs[n].dtype)
                names.append(_name_of(equation))
                rests.append(rest)
            return followed(equation, ins, outs)

        (out,) = evaluate(closed, [Value(x, moves=True)], visit, lifted, _looked_into)
        return out.array, rests

    shapes = jax.eval_shape(lambda x: run(x, None)[1], x)
    nudges = [jnp.zeros(shape.shape, shape.dtype) for shape in shapes]
    value, pull_back, rests = jax.vjp(run, x, nudges, has_aux=True)
    return Decomposition(value, [Rest(*pair) for pair in zip(names, rests, strict=True)], pull_back)


def layer_names(scorer: Scorer, images: Shape) -> tuple[str, ...]:
    """Names of the places inside ``scorer.features`` that were named, in order, nothing computed.

    Only the shape of ``images`` matters.
    """
    return tuple(_places(jax.make_jaxpr(scorer.features)(images)))


def stage_ends(scorer: Scorer, images: Shape) -> tuple[str, ...]:
    """Of the named places, the last one on each grid: the ends of the network's stages, in order.

    A place whose values are no maps (b,h,w,k) is none of them.
    """
    last: dict[tuple[int, ...], str] = {}
    for name in layer_names(scorer, images):
        shape = jax.eval_shape(at_layer(scorer, images, name).features, images).shape
        if len(shape) == 4:
            last[shape[1:3]] = name
    return tuple(last.values())


def at_layer(scorer: Scorer, images: Shape, name: str) -> Scorer:
    """The same classifier with its features taken at a named place, for images of this shape.

    Of ``images`` only the shape matters. The head of the result is all that comes after the place
    (the first of that name); it has no class maps. Raises ValueError for an unknown name (naming
    the nearest), and where the scores depend on the image on a way around the place.
    """
    closed = jax.make_jaxpr(lambda x: scorer.head(scorer.features(x)))(images)
    lookup(dict.fromkeys(_places(closed)), name, "layer")

    def features(images: Float[Array, "b h w n"]) -> Float[Array, "*s"]:
        found: list[Leaf] = []
        whole = jax.make_jaxpr(scorer.features)(images)
        evaluate(whole, [images], partial(_until, name, found), _same, calls)
        return found[0]

    def head(values: Float[Array, "*s"]) -> Float[Array, "b c"]:
        left = [values]
        (out,) = evaluate(closed, [_UNKNOWN], partial(_after, name, left), _same, calls)
        if out is _UNKNOWN:
            raise UserError(
                f"layer {name!r} is not the only way from the image to the scores; take one at "
                "the end of a block"
            )
        return out

    return Scorer(features, head)


def weighed(rest: Float[Array, "*s"], gradient: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Rest × gradient, zero where the gradient is: pooling pads with -inf, which never wins."""
    return jnp.where(gradient == 0, 0, rest * gradient)


_UNKNOWN: Any = object()
"""A value that cannot be computed from what is at hand."""


def evaluate(
    closed: core.ClosedJaxpr,
    args: list[V],
    visit: Callable[[core.JaxprEqn, list[V]], list[V]],
    lift: Callable[[Leaf], V],
    inside: Callable[[core.JaxprEqn, list[V]], core.ClosedJaxpr | None],
) -> list[V]:
    """Walk through a list of equations with values of any kind.

    visit: (equation, its inputs) to its outputs. lift: an array or number to such a value. inside:
    (equation, its inputs) to the equations to walk through in its place, or None.
    """
    jaxpr, known = closed.jaxpr, {}

    def walk(inner: core.ClosedJaxpr, ins: list[V]) -> list[V]:
        return evaluate(inner, ins, visit, lift, inside)

    def read(atom: core.Var | core.Literal) -> V:
        return lift(atom.val) if isinstance(atom, core.Literal) else known[atom]

    known.update(zip(jaxpr.constvars, map(lift, closed.consts), strict=True))
    known.update(zip(jaxpr.invars, args, strict=True))
    for equation in jaxpr.eqns:
        ins = [read(atom) for atom in equation.invars]
        inner = inside(equation, ins)
        outs = visit(equation, ins) if inner is None else walk(inner, ins)
        known.update(zip(equation.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def alone(equation: core.JaxprEqn, ins: list[Leaf]) -> list[Leaf]:
    """The outputs of one equation for these input arrays."""
    pairs = zip(equation.invars, ins, strict=True)
    inputs = {atom: value for atom, value in pairs if not isinstance(atom, core.Literal)}
    one = core.Jaxpr(
        constvars=[], invars=list(inputs), outvars=equation.outvars, eqns=[equation],
        effects=equation.effects, debug_info=core.DebugInfo("explain", "equation", None, None),
    )  # fmt: skip
    return core.jaxpr_as_fun(core.ClosedJaxpr(one, []))(*inputs.values())


def _with_rests(equation: core.JaxprEqn, ins: list[Value]) -> tuple[list[Leaf], dict[int, Leaf]]:
    """The outputs of an equation, and the rests of those that are real numbers, by position."""
    arrays, moving = [v.array for v in ins], [n for n, v in enumerate(ins) if v.moves]
    if equation.primitive.name in ADDITIONS and len(moving) == 1:
        outs = alone(equation, arrays)
        constant = jnp.asarray(arrays[1 - moving[0]], jnp.float32)
        if equation.primitive.name == "sub" and moving == [0]:
            constant = -constant
        return outs, {0: jnp.broadcast_to(constant, outs[0].shape)}
    real = [n for n, v in enumerate(equation.outvars) if is_real(v)]

    def run(*moved: Leaf) -> tuple[list[Leaf], list[Leaf]]:
        given = dict(zip(moving, moved, strict=True))
        outs = alone(equation, [given.get(n, array) for n, array in enumerate(arrays)])
        return [outs[n] for n in real], outs

    at = tuple(arrays[n] for n in moving)
    values, slopes, outs = jax.jvp(run, at, at, has_aux=True)
    found = zip(real, values, slopes, strict=True)
    return list(outs), {n: v.astype(jnp.float32) - d.astype(jnp.float32) for n, v, d in found}


def _name_of(equation: core.JaxprEqn) -> str:
    name = equation.primitive.name
    plain = any(isinstance(atom, core.Literal) for atom in equation.invars)
    return NUMBER if name in ADDITIONS and plain else name


def _adds_nothing(equation: core.JaxprEqn, ins: list[Value]) -> bool:
    """Is the rest of this equation zero by its nature, given which inputs move?"""
    name, moves = equation.primitive.name, [v.moves for v in ins]
    if name in ONE_MOVES:
        return sum(moves) == 1 and (name != "div" or moves[0])
    if name in ALL_MOVE:
        return all(v.moves or v.zero for v in ins[1 if name == "select_n" else 0 :])
    if name in FIRST_MOVES:
        return moves[0] and not any(moves[1:])
    return name in CUSTOM and is_quiet(inner_of(equation), ins)


def is_quiet(closed: core.ClosedJaxpr, ins: list[Value]) -> bool:
    """Do all equations of this list add nothing? Computes nothing."""
    found: list[bool] = []

    def visit(equation: core.JaxprEqn, ins: list[Value]) -> list[Value]:
        found.append(not any(v.moves for v in ins) or _adds_nothing(equation, ins))
        return followed(equation, ins, [_UNKNOWN] * len(equation.outvars))

    evaluate(closed, ins, visit, lifted, _looked_into)
    return all(found)


def followed(equation: core.JaxprEqn, ins: list[Value], outs: Sequence[Leaf]) -> list[Value]:
    """The output arrays of an equation with what is known of them from its inputs."""
    moves = any(v.moves for v in ins)
    zero = not moves and equation.primitive.name in KEEP_ZERO and ins[0].zero
    pairs = zip(outs, equation.outvars, strict=True)
    return [Value(out, moves and is_real(variable), zero) for out, variable in pairs]


def lifted(value: Leaf) -> Value:
    """An array or number of the list that does not depend on x."""
    known = not isinstance(value, Tracer) and np.ndim(value) == 0
    return Value(value, zero=known and bool(value == 0))


def _same(value: V) -> V:
    return value


def is_real(variable: core.Var) -> bool:
    """Are these floating-point numbers?"""
    return jnp.issubdtype(_aval(variable).dtype, jnp.floating)


def _aval(variable: core.Var) -> Any:
    """Shape and type of an array of the list; jax names no public class that has both."""
    return variable.aval


def calls(equation: core.JaxprEqn, ins: list[V]) -> core.ClosedJaxpr | None:
    """The equations that a plain call holds."""
    return inner_of(equation) if equation.primitive.name in CALLS else None


def _looked_into(equation: core.JaxprEqn, ins: list[Value]) -> core.ClosedJaxpr | None:
    """Those of a plain call, and of a function with its own backward rule that has biases."""
    if equation.primitive.name == "custom_vjp_call" and any(v.moves for v in ins):
        inner = inner_of(equation)
        return None if is_quiet(inner, ins) else inner
    return calls(equation, ins)


def inner_of(equation: core.JaxprEqn) -> core.ClosedJaxpr:
    """The equations that an equation holds."""
    inner: Any = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
    return inner if hasattr(inner, "jaxpr") else core.ClosedJaxpr(inner, ())


def _places(closed: core.ClosedJaxpr) -> Iterator[str]:
    for equation in closed.jaxpr.eqns:
        if equation.primitive.name == "name":
            yield equation.params["name"]
        inner = calls(equation, [])
        if inner is not None:
            yield from _places(inner)


def _is_place(equation: core.JaxprEqn, name: str) -> bool:
    return equation.primitive.name == "name" and equation.params["name"] == name


def _until(name: str, found: list[Leaf], equation: core.JaxprEqn, ins: list[Leaf]) -> list[Leaf]:
    """Evaluate as far as the named place, and put its value into ``found``."""
    if found:
        return [_UNKNOWN] * len(equation.outvars)
    outs = alone(equation, ins)
    if _is_place(equation, name):
        found.extend(outs)
    return outs


def _after(name: str, left: list[Leaf], equation: core.JaxprEqn, ins: list[Leaf]) -> list[Leaf]:
    """Evaluate what follows the named place, whose value is taken out of ``left``."""
    if left and _is_place(equation, name):
        wanted, values = _aval(equation.outvars[0]), left.pop()
        if values.shape != wanted.shape:
            raise ValueError(
                f"features are {values.shape}, layer {name!r} of these images has {wanted.shape}; "
                "cut the network anew for images of another size"
            )
        return [values.astype(wanted.dtype)]
    if any(value is _UNKNOWN for value in ins):
        return [_UNKNOWN] * len(equation.outvars)
    return alone(equation, ins)
