"""Guided back-propagation (Springenberg et al. 2015): rectifiers pass back positive gradients only.

The gradient of a class score at the image, where every ReLU hands a gradient on only if its input
was positive, as always, and the gradient itself is. Rectifiers are found in the network's list of
equations (``equations``), whatever library wrote them: a maximum with zero, alone or capped, as in
ReLU6. Everything else has its own derivative: pooling, norms, sigmoid gates of attention.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.extend import core
from jaxtyping import Array, Float

from wsss_jax.errors import UserError
from wsss_jax.explain import equations
from wsss_jax.explain.contract import Images, Labels, Maps, check_labels, logits_of, over_labels
from wsss_jax.explain.equations import Value
from wsss_jax.explain.saliency import Reduce, largest
from wsss_jax.types import Scorer

PIECEWISE = frozenset({"max", "min", "convert_element_type", "broadcast_in_dim", "jit", "pjit"})
"""What a rectifier with a derivative of its own may consist of; softplus and others do not."""


def guided_gradient(
    scorer: Scorer, images: Images, labels: Labels, *, reduce: Reduce = largest
) -> Maps:
    """The guided gradient of the class score at the pixels, reduced over colours.

    Raises UserError where the network has no rectifier, such as one of swish or GELU alone: the
    paper defines no guided gradient of these, and the plain one is ``saliency.vanilla_gradient``.
    """
    logits, pull_back = jax.vjp(guided(partial(logits_of, scorer)), images)
    check_labels(labels, *logits.shape)
    return over_labels(labels, lambda chosen: reduce(pull_back(chosen)[0]))


def guided(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """The same function of one array, with guided derivatives, for one walk back (``jax.vjp``).

    Rectifiers inside loops (``scan``, ``while``), branches and functions with a backward rule of
    their own are not guided. UserError where there are none to guide.
    """

    def run(x: Float[Array, "*s"]) -> Float[Array, "*t"]:
        found, out = _rewired(function, x, _guided_relu)
        if not found:
            raise UserError(
                "this network has no ReLU, and guided back-propagation changes nothing else; "
                "choose a network of ReLU or ReLU6, or another method"
            )
        return out

    return run


def straight(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """The same function of one array, whose rectifiers and caps pass every gradient on.

    So gradients arrive from channels that are off or at their cap too: where one looks, whatever it
    found there.
    """
    return lambda x: _rewired(function, x, _straight_relu, caps=True)[1]


def _rewired(
    function: Callable[[Array], Array],
    x: Float[Array, "*s"],
    rectify: Callable[[Array], Array],
    *,
    caps: bool = False,
) -> tuple[int, Array]:
    """How many rectifiers were replaced by ``rectify``, and the value; caps pass gradients on."""
    count = 0

    def visit(equation: core.JaxprEqn, ins: list[Value]) -> list[Value]:
        nonlocal count
        outs = equations.alone(equation, [value.array for value in ins])
        moving = [value.array for value in ins if value.moves]
        if _is_rectifier(equation, ins):
            count += 1
            outs = [rectify(moving[0])]
        elif caps and equation.primitive.name == "min" and len(moving) == 1:
            # The cap's value with the gradient of what came in.
            outs = [moving[0] + jax.lax.stop_gradient(outs[0] - moving[0])]
        return equations.followed(equation, ins, outs)

    closed = jax.make_jaxpr(function)(x)
    start = [Value(x, moves=True)]
    (out,) = equations.evaluate(closed, start, visit, equations.lifted, _looked_into)
    return count, out.array


def _straight_relu(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    return x + jax.lax.stop_gradient(jnp.maximum(x, 0) - x)


@jax.custom_vjp
def _guided_relu(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    return jnp.maximum(x, 0)


def _forward(x: Array) -> tuple[Array, Array]:
    return _guided_relu(x), x > 0


def _backward(positive: Array, g: Array) -> tuple[Array]:
    return (jnp.where(positive & (g > 0), g, jnp.zeros((), g.dtype)),)


_guided_relu.defvjp(_forward, _backward)


def _is_rectifier(equation: core.JaxprEqn, ins: list[Value]) -> bool:
    if equation.primitive.name != "max":
        return False
    return any(a.moves and b.zero for a, b in (ins, ins[::-1]))


def _looked_into(equation: core.JaxprEqn, ins: list[Value]) -> core.ClosedJaxpr | None:
    """The equations of a plain call, and of a derivative of its own if they are piecewise."""
    if equation.primitive.name == "custom_jvp_call" and any(value.moves for value in ins):
        inner = equations.inner_of(equation)
        return inner if _is_piecewise(inner) else None
    return equations.calls(equation, ins)


def _is_piecewise(closed: core.ClosedJaxpr) -> bool:
    return all(
        equation.primitive.name in PIECEWISE
        and (equations.calls(equation, []) is None or _is_piecewise(equations.inner_of(equation)))
        for equation in closed.jaxpr.eqns
    )
