"""What the library is held to: the formulas in float64 NumPy, as plain as they can be written."""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp


def sinkhorn(log_probs: np.ndarray, lam: float, tolerance: float = 1e-9, max_iterations: int = 200_000) -> np.ndarray:
    """Potentials [K], mean zero, of the transport, by plain Sinkhorn-Knopp in the log domain."""
    scores = lam * log_probs.astype(np.float64)
    num_clusters = scores.shape[1]
    v = np.zeros(num_clusters)
    for _ in range(max_iterations):
        mass = marginals(scores, v)
        if np.abs(mass - 1 / num_clusters).sum() <= tolerance:
            break
        v += np.log(1 / num_clusters) - np.log(mass)
        v -= v.mean()
    return v


def marginals(scores: np.ndarray, v: np.ndarray) -> np.ndarray:
    """mean_i softmax(scores_i + v), [K]."""
    shifted = scores + v
    return np.exp(shifted - logsumexp(shifted, axis=1, keepdims=True)).mean(axis=0)


def dual(scores: np.ndarray, v: np.ndarray) -> float:
    """The concave function of the potentials whose maximum is the transport: mean v - mean_i log sum_k exp(scores_ik + v_k)."""
    return float(v.mean() - logsumexp(scores + v, axis=1).mean())


def log_probs(rng: np.random.Generator, num_rows: int, num_clusters: int, *, spread: float = 1.0) -> np.ndarray:
    """Log-probabilities like a network's: clusters of unequal popularity around centres. float32 [N, K]."""
    centres = rng.normal(size=(num_clusters, 8))
    points = centres[rng.zipf(1.5, num_rows) % num_clusters] + rng.normal(size=(num_rows, 8))
    logits = spread * (points @ centres.T * 0.15 + 0.3 * rng.normal(size=num_clusters))
    return (logits - logsumexp(logits, axis=1, keepdims=True)).astype(np.float32)


def zeros_but(value: float, where: tuple) -> np.ndarray:
    """float32 [6, 3], all 0 but for one value at some places."""
    log_probs = np.zeros((6, 3), np.float32)
    log_probs[where] = value
    return log_probs
