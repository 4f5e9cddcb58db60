"""Layer-wise relevance propagation in convolutional networks, whatever library wrote them.

The network is read as its list of equations (``equations``) and relevance walks back over it:

* convolutions, products with weights, and sums hand it on by a rule of ``lrp_rules``, with the
  scale and shift behind them (BatchNorm) folded in; the first one, of the pixels, by z^B;
* additions of two maps share it by the same rule; maxima give it to the winner;
* rectifiers, caps, plain scales and shifts and all that only moves values pass it on unchanged;
* gates (sigmoid, softmax, tanh, erf) are constants, and what they multiply gets all (Arras et al.
  2019): so swish passes it on, and squeeze-and-excitation and ResNeSt's split attention are read
  as fixed weights. How the image made the gates is not explained.

The class starts with relevance 1. Where a network squares its values or divides by them, as norms
of the image itself do, there is no rule, and UserError names the equation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax.extend import core
from jaxtyping import Array, Float

from wsss_jax.errors import UserError
from wsss_jax.explain import equations, lrp_rules
from wsss_jax.explain.contract import Images, Labels, Maps, check_labels, logits_of, over_labels
from wsss_jax.explain.equations import Value
from wsss_jax.explain.lrp_rules import Layer, Rule
from wsss_jax.types import Leaf, Scorer

GATES = frozenset({"logistic", "exp", "tanh", "erf", "erf_inv", "stop_gradient"})
PRODUCTS = frozenset({"conv_general_dilated", "dot_general", "custom_vjp_call"})
SUMS = frozenset({"reduce_sum", "reduce_window_sum"})
WINNERS = frozenset({"max", "min", "reduce_max", "reduce_min", "reduce_window_max"})
KEPT = frozenset({"convert_element_type", "copy", "name"})
MOVED = frozenset(
    {
        "broadcast_in_dim", "concatenate", "dynamic_slice", "gather", "pad", "reshape", "rev",
        "select_n", "slice", "split", "squeeze", "stack", "tile", "transpose", "unstack",
    }
)  # fmt: skip


def lrp_z_plus(scorer: Scorer, images: Images, labels: Labels) -> Maps:
    """Layer-wise relevance propagation (LRP) with rule z⁺: never negative, sums to 1 per class.

    The pixels have rule z^B.
    """
    return lrp(scorer, images, labels, lrp_rules.alpha_beta(1.0))


def lrp_alpha_beta(scorer: Scorer, images: Images, labels: Labels) -> Maps:
    """LRP with rule αβ (α = 2, β = 1), and z^B at the pixels."""
    return lrp(scorer, images, labels, lrp_rules.alpha_beta(2.0))


def lrp_epsilon(scorer: Scorer, images: Images, labels: Labels) -> Maps:
    """LRP with rule ε, and z^B at the pixels."""
    return lrp(scorer, images, labels, lrp_rules.epsilon())


def lrp(scorer: Scorer, images: Images, labels: Labels, rule: Rule) -> Maps:
    """Relevance of the pixels (b,H,W,c) by any rule, summed over colours."""
    logits, walk_back = propagated(partial(logits_of, scorer), images, rule)
    check_labels(labels, *logits.shape)
    return over_labels(labels, lambda chosen: walk_back(chosen).sum(axis=-1))


def propagated(
    function: Callable[[Array], Array], images: Images, rule: Rule
) -> tuple[Array, Callable[[Array], Array]]:
    """A function's value at images in [0, 1], and from relevance of the value to that of pixels."""
    closed = jax.make_jaxpr(function)(images)
    tape = _Tape(rule)
    start = _Seen(images, slot=0, bounds=(jnp.zeros_like(images), jnp.ones_like(images)))
    (out,) = equations.evaluate(closed, [start], tape.visit, _Seen, _looked_into)
    last = tape.slot_of(out) if out.moves else None

    def walk_back(relevance: Float[Array, "*s"]) -> Float[Array, "b H W 3"]:
        found = {last: relevance.astype(jnp.float32)}
        for step in reversed(tape.steps):
            arrived = [found.pop(slot, None) for slot in step.outs]
            if all(part is None for part in arrived):
                continue
            parts = zip(arrived, step.shapes, strict=True)
            whole = [jnp.zeros(shape) if part is None else part for part, shape in parts]
            for slot, part in zip(step.ins, step.back(whole), strict=True):
                found[slot] = part.astype(jnp.float32) + found.get(slot, 0.0)
        return found.get(0, jnp.zeros(images.shape, jnp.float32))

    return out.array, walk_back


@dataclass(eq=False)
class _Seen:
    """A value on its way forward.

    slot: where its relevance is collected; None where it is constant or still ``layer``, a linear
    layer that scales and shifts may yet be folded into. came: the slot of the layer's input.
    """

    array: Leaf
    slot: int | None = None
    layer: Layer | None = None
    came: int = 0
    bounds: tuple[Array, Array] | None = None

    @property
    def moves(self) -> bool:
        return self.slot is not None or self.layer is not None


@dataclass(frozen=True)
class _Step:
    """How the relevance of some slots goes back to others."""

    ins: Sequence[int]
    outs: Sequence[int]
    shapes: Sequence[tuple[int, ...]]
    back: Callable[[list[Array]], Sequence[Array]]


class _Tape:
    """The steps of one walk through a network, in order."""

    def __init__(self, rule: Rule) -> None:
        self.rule, self.steps, self.count = rule, [], 1

    def slot_of(self, seen: _Seen) -> int:
        """The slot of a value; a layer is closed, nothing more is folded into it."""
        if seen.slot is None:
            assert seen.layer is not None
            linear = lrp_rules.bounded if seen.layer.bounds else self.rule.linear
            layer, seen.layer = seen.layer, None
            seen.slot = self.add([seen.came], [seen.array], lambda r: [linear(layer, r[0])])[0]
        return seen.slot

    def add(
        self,
        ins: Sequence[int],
        outs: Sequence[Array],
        back: Callable[[list[Array]], Sequence[Array]],
    ) -> list[int]:
        """New slots for these outputs."""
        slots = list(range(self.count, self.count + len(outs)))
        self.count += len(outs)
        self.steps.append(_Step(ins, slots, [out.shape for out in outs], back))
        return slots

    def visit(self, equation: core.JaxprEqn, ins: list[_Seen]) -> list[_Seen]:
        """The outputs of one equation."""
        name, arrays = equation.primitive.name, [seen.array for seen in ins]
        moving = [n for n, seen in enumerate(ins) if seen.moves]
        outs = equations.alone(equation, arrays)
        if not moving or name in GATES or not equations.is_real(equation.outvars[0]):
            return [_Seen(out) for out in outs]
        one = ins[moving[0]]
        if len(moving) == 1 and (folded := _folded(equation, ins, moving[0], outs[0])):
            return [folded if folded.layer else self._passed(one, folded)]
        if len(moving) == 1 and name in PRODUCTS | SUMS:
            return [self._layer(equation, ins, moving[0], outs[0])]
        if len(moving) == 2 and name in {"add", "sub", "add_any"}:
            return [self._added(ins, outs[0], negative=name == "sub")]
        if len(moving) == 1 and name in {"max", "min", "clamp"}:
            return [self._passed(one, _Seen(outs[0]))]
        if name in MOVED | WINNERS:
            return self._moved(equation, ins, moving, outs)
        raise UserError(
            f"no rule for relevance through {name!r} of {len(moving)} values; LRP is for networks "
            "of convolutions, frozen norms, rectifiers, pooling and gates"
        )

    def _passed(self, one: _Seen, out: _Seen) -> _Seen:
        slot = self.slot_of(one)
        out.slot = self.add([slot], [out.array], lambda r: r)[0]
        return out

    def _layer(self, equation: core.JaxprEqn, ins: list[_Seen], at: int, out: Array) -> _Seen:
        def weighs(*others: Array) -> Callable[[Array], Array]:
            first, last = others[:at], others[at:]
            return lambda x: equations.alone(equation, [*first, x, *last])[0].astype(jnp.float32)

        others = [seen.array for n, seen in enumerate(ins) if n != at]
        up, down = weighs(*others), lambda x: jnp.zeros(out.shape, jnp.float32)
        if others:
            up = weighs(*(jnp.maximum(kernel, 0) for kernel in others))
            down = weighs(*(jnp.minimum(kernel, 0) for kernel in others))
        one = ins[at]
        slot = self.slot_of(one)
        scale, bias = jnp.ones((1,) * out.ndim), jnp.zeros((1,) * out.ndim)
        return _Seen(out, layer=Layer(one.array, up, down, scale, bias, one.bounds), came=slot)

    def _added(self, ins: list[_Seen], out: Array, *, negative: bool) -> _Seen:
        a, b = (seen.array.astype(jnp.float32) for seen in ins)
        b = -b if negative else b
        slots = [self.slot_of(seen) for seen in ins]
        return _Seen(out, self.add(slots, [out], lambda r: self.rule.add(a, b, r[0]))[0])

    def _moved(
        self, equation: core.JaxprEqn, ins: list[_Seen], moving: list[int], outs: list[Array]
    ) -> list[_Seen]:
        arrays = [seen.array for seen in ins]

        def run(*moved: Array) -> list[Array]:
            given = dict(zip(moving, moved, strict=True))
            return equations.alone(equation, [given.get(n, one) for n, one in enumerate(arrays)])

        def back(relevance: list[Array]) -> Sequence[Array]:
            walk = jax.vjp(run, *(arrays[n] for n in moving))[1]
            pairs = zip(relevance, outs, strict=True)
            return walk([part.astype(out.dtype) for part, out in pairs])

        slots = self.add([self.slot_of(ins[n]) for n in moving], outs, back)
        kept = len(outs) == len(moving) == 1 and equation.primitive.name in MOVED
        ends = _ends(equation, ins, moving[0]) if kept else None
        return [_Seen(out, slot, bounds=ends) for out, slot in zip(outs, slots, strict=True)]


def _folded(equation: core.JaxprEqn, ins: list[_Seen], at: int, out: Array) -> _Seen | None:
    """A scale, shift or change of type of one value, folded into its layer if it is one.

    None where the equation is none of these.
    """
    name, one, others = equation.primitive.name, ins[at], [s.array for s in ins if s is not ins[at]]
    factor, shift = jnp.ones((), jnp.float32), jnp.zeros((), jnp.float32)
    if name in {"mul", "div", "add", "add_any", "sub"}:
        other = jnp.asarray(others[0], jnp.float32)
        if name == "mul" or (name == "div" and at == 0):
            factor = other if name == "mul" else 1 / other
        elif name == "div":
            return None
        else:
            shift = -other if name == "sub" and at == 0 else other
    if name == "neg" or (name == "sub" and at == 1):
        factor = -factor
    elif name not in KEPT | {"mul", "div", "add", "add_any", "sub"}:
        return None
    if one.layer is not None:
        scale, bias = factor * one.layer.scale, factor * one.layer.bias + shift
        return _Seen(out, layer=one.layer._replace(scale=scale, bias=bias), came=one.came)
    return _Seen(out, bounds=_ends(equation, ins, at))


def _ends(equation: core.JaxprEqn, ins: list[_Seen], at: int) -> tuple[Array, Array] | None:
    """The bounds after an equation that never changes the order of values, or turns it round."""
    if (bounds := ins[at].bounds) is None:
        return None
    arrays = [seen.array for seen in ins]
    low, high = (
        equations.alone(equation, [*arrays[:at], end, *arrays[at + 1 :]])[0] for end in bounds
    )
    return jnp.minimum(low, high), jnp.maximum(low, high)


def _looked_into(equation: core.JaxprEqn, ins: list[_Seen]) -> core.ClosedJaxpr | None:
    """Every equation that holds others, but for products with a backward rule of their own."""
    name = equation.primitive.name
    if name not in equations.CUSTOM:
        return equations.calls(equation, [])
    inner = equations.inner_of(equation)
    if name == "custom_vjp_call" and len(ins) == 2:
        known = [Value(seen.array, seen.moves) for seen in ins]
        names = {one.primitive.name for one in inner.jaxpr.eqns}
        if equations.is_quiet(inner, known) and not names & WINNERS:
            return None
    return inner
