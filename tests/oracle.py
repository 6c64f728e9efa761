"""The formulas that the library is held to, in float64 NumPy, as plain as they can be written."""

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
    """The mass of each cluster, mean_i softmax(scores_i + v), [K]."""
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
    """Log-probabilities float32 [6, 3], all 0 but for one value at some places."""
    log_probs = np.zeros((6, 3), np.float32)
    log_probs[where] = value
    return log_probs


def _one_hot(rng: np.random.Generator, num_rows: int, shares: np.ndarray) -> np.ndarray:
    """Rows that are certain of one cluster, to 1e-30."""
    chosen = rng.choice(len(shares), num_rows, p=shares)
    return np.where(chosen[:, np.newaxis] == np.arange(len(shares)), 0, np.log(1e-30)).astype(np.float32)


def hard_problem(name: str, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    usual = log_probs(rng, 2048, 32)
    return {
        "all rows equal": lambda: (np.full((2048, 32), -np.log(32), np.float32), 25.0),
        "one-hot, balanced": lambda: (
            np.where(np.arange(2048)[:, np.newaxis] % 32 == np.arange(32), 0, -69.0).astype(np.float32),
            25.0,
        ),
        "one-hot on an eighth": lambda: (_one_hot(rng, 2048, np.repeat([0.25, 0], [4, 28])), 25.0),
        "one-hot, random sizes": lambda: (_one_hot(rng, 2048, rng.dirichlet(np.ones(32))), 25.0),
        "starved": lambda: (usual - np.where(np.arange(32) < 10, 30, 0).astype(np.float32), 25.0),
        "lam 0.001": lambda: (usual, 1e-3),
        "lam 1": lambda: (usual, 1.0),
        "lam 100": lambda: (usual, 100.0),
        "lam 1000": lambda: (usual, 1e3),
        "duplicates": lambda: (np.repeat(usual[:50], 41, axis=0), 25.0),
        "duplicates, lam 1000": lambda: (np.repeat(usual[:50], 41, axis=0), 1e3),
        "K = N": lambda: (log_probs(rng, 100, 100), 25.0),
        "K = N, one-hot": lambda: (np.where(np.eye(32) > 0, 0, -69.0).astype(np.float32), 25.0),
        "prime": lambda: (log_probs(rng, 2053, 31), 25.0),
        "half forbidden": lambda: (np.where(rng.random(usual.shape) < 0.5, -np.inf, usual).astype(np.float32), 25.0),
        "rows not normalised": lambda: (usual + 100 * rng.normal(size=(2048, 1)).astype(np.float32), 25.0),
    }[name]()


HARD = [
    "all rows equal", "one-hot, balanced", "one-hot on an eighth", "one-hot, random sizes", "starved", "lam 0.001", "lam 1", "lam 100",
    "lam 1000", "duplicates", "duplicates, lam 1000", "K = N", "K = N, one-hot", "prime", "half forbidden", "rows not normalised",
]  # fmt: skip
