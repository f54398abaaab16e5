"""Fits the network: two hidden layers, a falling learning rate; the epoch that is best on validation is kept, and calibrated.

Settings and what was tried: docs/results/handbook.md.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from models.calibrate import platt
from models.graph import Network
from models.metrics import average_precision
from models.rows import Rows, sample_legit

HIDDEN = (256, 128)  # with 40 features: 43,521 parameters
CLIP = 12.0  # standard deviations
LEGIT_PER_FRAUD = 20  # more legit rows make an epoch longer and the score no better
EPOCHS = 20
LEARNING_RATE = 1e-3  # of the first epoch; it falls to nothing by half a cosine
WEIGHT_DECAY = 0.01

Layers = tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]]  # weights (inputs, outputs), biases (outputs,)
Progress = Callable[[str, int, int], None]  # step, done, total


def fit_network(fit: Rows, validation: Rows, seed: int, progress: Progress | None) -> Network:
    """Normalise, fit the layers, make their output a probability."""
    scaler = StandardScaler().fit(fit.vectors)
    mean, std = scaler.mean_, np.sqrt(scaler.var_)
    # A feature that never varied says nothing: it must not speak up later with weights that were never trained.
    inverse_std = np.where(std > 1e-9, 1 / np.maximum(std, 1e-9), 0.0)
    normal = [np.clip((rows.vectors - mean) * inverse_std, -CLIP, CLIP).astype(np.float32) for rows in (fit, validation)]
    random = np.random.RandomState(seed)
    train = sample_legit(Rows(normal[0], fit.frauds), LEGIT_PER_FRAUD, random)
    with threadpool_limits(1):  # in batches of 256 a second thread mostly spins, at the cost of whoever else works
        weights, biases = _fit_layers(train.rows, Rows(normal[1], validation.frauds), random, progress)
    biases[-1] = biases[-1] + np.float32(train.shift)
    slope, shift = platt(_logits((weights, biases), normal[1]), validation.frauds)
    weights[-1], biases[-1] = weights[-1] * np.float32(slope), biases[-1] * np.float32(slope) + np.float32(shift)
    return Network(mean.astype(np.float32), inverse_std.astype(np.float32), CLIP, weights, biases)


def _fit_layers(train: Rows, validation: Rows, random: np.random.RandomState, progress: Progress | None) -> Layers:
    """The layers of the epoch with the best average precision on validation."""
    # A RandomState, not a number: partial_fit would shuffle every epoch in the same order.
    net = MLPClassifier(HIDDEN, alpha=WEIGHT_DECAY, batch_size=256, learning_rate_init=LEARNING_RATE, random_state=random)
    best: Layers = ([], [])
    best_ap = -1.0
    for epoch in range(EPOCHS):
        if epoch:  # private, but there from the first epoch on; `learning_rate_init` is read only then
            net._optimizer.learning_rate_init = LEARNING_RATE * (1 + np.cos(np.pi * epoch / EPOCHS)) / 2
        net.partial_fit(train.vectors, train.frauds, classes=[0, 1])
        layers: Layers = (net.coefs_, net.intercepts_)
        ap = average_precision(_logits(layers, validation.vectors), validation.frauds)
        if ap > best_ap:
            best, best_ap = ([w.copy() for w in layers[0]], [b.copy() for b in layers[1]]), ap
        if progress is not None:
            progress("fit", epoch + 1, EPOCHS)
    return best


def _logits(layers: Layers, x: NDArray[np.float32]) -> NDArray[np.float32]:
    weights, biases = layers
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        x = np.maximum(x @ weight + bias, 0)
    result: NDArray[np.float32] = (x @ weights[-1] + biases[-1])[:, 0]
    return result
