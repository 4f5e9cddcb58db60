"""A learning problem of one linear layer on one-pixel images, and batches that know their place."""

import os
import signal

import jax
import numpy as np
from flax import nnx

from wsss_jax import losses
from wsss_jax.train import state as states
from wsss_jax.train.optimizers import Optim, optimizer
from wsss_jax.types import Batch, System

STEPS = 6


def linear_system(steps=STEPS, optim=Optim(learning_rate=0.5)):  # noqa: B008
    def module(key):
        return nnx.Linear(3, 2, rngs=nnx.Rngs(key))

    network = states.abstract(lambda: module(jax.random.key(0)))
    update = optimizer(optim, steps, lambda name: False)

    def init(key):
        return states.create(states.functional(module(key)), update)

    def step(state, batch, key):
        def loss_of(params):
            logits = network.bind(params, state.stats)(batch.images.mean(axis=(1, 2)))
            targets = losses.smooth(batch.labels, 0.0)
            loss = losses.multilabel_soft_margin(logits, targets)
            return losses.mean_over(loss, batch.real), {}

        return state.descended(update, loss_of)

    return System(init, step)


class ToyBatches:
    """Batch i is a pure function of i; some positions can be poisoned or send a signal."""

    def __init__(self, *, poison=(), signal_at=None):
        self.position, self.poison, self.signal_at = 0, poison, signal_at

    def __next__(self):
        rng = np.random.default_rng(self.position)
        images = rng.random((4, 1, 1, 3), np.float32)
        labels = np.stack([images[:, 0, 0, 0] > 0.5, images[:, 0, 0, 1] > 0.5], -1)
        if self.position in self.poison:
            images = images * np.float32("nan")
        if self.position == self.signal_at:
            os.kill(os.getpid(), signal.SIGTERM)
        self.position += 1
        return Batch(images, labels, np.ones((4, 1, 1), bool), np.ones(4, bool))

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]
