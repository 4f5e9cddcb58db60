"""Long-tailed classes: losses and weights by hand, the draw of images, a classifier's loss."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsss_jax.batches.augment import Augmentation
from wsss_jax.batches.batches import training_batches
from wsss_jax.data.classes import ClassList
from wsss_jax.datasets import views
from wsss_jax.errors import UserError
from wsss_jax.losses import long_tail
from wsss_jax.stages.train import counted
from wsss_jax.systems import Classifier, PuzzleCam
from wsss_jax.systems.class_loss import ClassLoss
from wsss_jax.types import Batch


@dataclass(frozen=True)
class Rows:
    """A source of noise whose labels are given, one row an image."""

    rows: tuple
    classes: ClassList
    name = "rows"
    has_background = True

    @property
    def ids(self):
        return tuple(f"i{n:03d}" for n in range(len(self.rows)))

    def labels(self, id):
        return np.array(self.rows[int(id[1:])], bool)

    def image(self, id):
        return np.random.default_rng(int(id[1:])).integers(0, 256, (16, 16, 3)).astype(np.uint8)

    def size(self, id):
        return 16, 16

    def mask(self, id):
        raise AssertionError("no truth is read here")

    def encoded(self, id):
        raise AssertionError("nobody asks for bytes here")


TAIL = Rows((), ClassList(("cat", "dog")))


def test_focal_by_hand():
    logits = jnp.log(jnp.asarray([[3.0, 3.0]]))  # p = 3/4
    found = long_tail.focal(logits, jnp.asarray([[1.0, 0.0]]))
    wanted = [[-(0.25**2) * np.log(0.75), -(0.75**2) * np.log(0.25)]]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_asymmetric_by_hand_forgives_what_is_below_the_margin():
    logits = jnp.log(jnp.asarray([[3.0, 3.0, 1 / 99]]))  # p = 3/4, 3/4, 1/100
    found = long_tail.asymmetric(logits, jnp.asarray([[1.0, 0.0, 0.0]]))
    np.testing.assert_allclose(
        found, [[-np.log(0.75), -(0.7**4) * np.log(0.3), 0]], rtol=1e-5, atol=1e-9
    )


@pytest.mark.parametrize("loss", [long_tail.focal, long_tail.asymmetric])
def test_losses_and_slopes_are_finite_far_out(loss):
    logits = jnp.asarray([[-90.0, 90.0, -90.0, 90.0]])
    targets = jnp.asarray([[1.0, 1.0, 0.0, 0.0]])
    value, slope = jax.value_and_grad(lambda x: loss(x, targets).sum())(logits)
    assert jnp.isfinite(value) and jnp.isfinite(slope).all()


def test_effective_weights_by_hand():
    found = long_tail.effective_weights(jnp.asarray([1, 2, 0]), beta=0.5)
    # Effective numbers 1, 1.5 and, for none, that of one.
    wanted = np.array([1, 1 / 1.5, 1])
    np.testing.assert_allclose(found, wanted / wanted.mean(), rtol=1e-5)
    nearly = long_tail.effective_weights(jnp.asarray([2, 100]), beta=0.999999)
    assert float(nearly[0] / nearly[1]) == pytest.approx(50, rel=1e-3)


def test_prior_logits_by_hand():
    found = long_tail.prior_logits(jnp.asarray([3, 0, 8]), 8)
    np.testing.assert_allclose(found, np.log([4 / 6, 1 / 9, 9 / 1]), rtol=1e-5)


def test_a_class_is_drawn_and_then_an_image_of_it():
    labels = np.array([[1, 0], [1, 0], [1, 1], [0, 0]], bool)
    found = long_tail.sampling_shares(labels)
    np.testing.assert_allclose(found, np.array([1 / 3, 1 / 3, 4 / 3, 1]) / 3)
    np.testing.assert_allclose(long_tail.sampling_shares(labels[:2]), [0.5, 0.5])


def batch():
    return Batch(
        jnp.zeros((2, 8, 8, 3)),
        jnp.asarray([[True, False], [False, True]]),
        jnp.ones((2, 8, 8), bool),
        jnp.asarray([True, False]),
    )


def test_the_loss_of_a_classifier_by_hand():
    targets, logits = jnp.asarray([[1.0, 0.0], [0.0, 1.0]]), jnp.zeros((2, 2))
    labels = np.array([[1, 0], [1, 0], [1, 1], [0, 1]], bool)
    plain = ClassLoss().of(logits, targets, batch())
    assert float(plain) == pytest.approx(np.log(2), rel=1e-6)
    logit = ClassLoss(balance="logit").counted(labels)
    assert (logit.images, logit.shown) == (4, (3, 2))
    # Priors are 4/6 and 3/6, so the first image costs -log 4/6 and -log 3/6; the second is none.
    wanted = -(np.log(4 / 6) + np.log(3 / 6)) / 2
    assert float(logit.of(logits, targets, batch())) == pytest.approx(wanted, rel=1e-5)
    effective = ClassLoss("focal", "effective").counted(labels)
    weights = np.asarray(long_tail.effective_weights(jnp.asarray([3, 2])))
    wanted = (weights * np.log(2) / 4).mean()
    assert float(effective.of(logits, targets, batch())) == pytest.approx(wanted, rel=1e-5)
    with pytest.raises(UserError, match="counts of 0 classes for 2"):
        ClassLoss(balance="logit").of(logits, targets, batch())


def test_balanced_batches_show_a_rare_class_as_often_as_a_common_one():
    labels = [[True, False]] * 9 + [[False, True]]
    source = replace(TAIL, rows=tuple(labels))
    batches = training_batches(
        source, Augmentation(crop=4, long_side=(4, 4)), seed=0, batch_size=10, balanced=True
    )
    shown = np.concatenate([next(batches).labels for _ in range(20)])
    assert batches.steps_per_epoch == 1 and 0.4 < shown[:, 1].mean() < 0.6


def test_training_tells_a_balanced_loss_the_counts():
    source = replace(TAIL, rows=((True, False), (True, True)))
    model = Classifier(loss=ClassLoss("asymmetric", "logit"))
    for settings in (model, PuzzleCam(model)):
        found = counted(settings, source)
        own = found if isinstance(found, Classifier) else found.classifier
        assert (own.loss.images, own.loss.shown) == (2, (2, 1))
    assert counted(Classifier(), source) == Classifier()


def test_a_long_tailed_draw_by_hand():
    rows = [(True, False, False)] * 90 + [(True, True, False)] * 9 + [(False, True, True)] * 60
    source = Rows((*rows, (False, False, False)), ClassList(("head", "middle", "tail")))
    drawn = views.long_tailed(source, imbalance=9.0)
    shown = np.array([drawn.labels(id) for id in drawn.ids])
    # 99 images show the first: wanted are 99, 33 and 11. Those of the tail show the middle as well,
    # which then takes all of its 9 others; these show the head.
    np.testing.assert_array_equal(shown.sum(axis=0), [99, 20, 11])
    assert drawn.ids[-1] == "i159" and len(drawn.ids) == 111
    assert drawn.ids == views.long_tailed(source, imbalance=9.0).ids
    assert drawn.ids != views.long_tailed(source, imbalance=9.0, seed=1).ids
