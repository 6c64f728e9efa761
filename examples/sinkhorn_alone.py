"""The transport alone, on anyone's log-probabilities: 20,000 rows are shared equally between 50 clusters."""

import numpy as np

import sela_tf

random = np.random.default_rng(0)
centres = random.normal(size=(50, 16))
# some clusters are far more popular than others
points = centres[random.choice(50, 20_000, p=np.arange(1, 51) / 1275)] + random.normal(size=(20_000, 16))
logits = (points @ centres.T).astype(np.float32)  # [N, K]

result = sela_tf.sinkhorn(logits, lam=25.0)
print(f"{result.num_iterations} iterations, L1 error of the clusters' sizes {result.marginal_error:.1e}")

balanced = sela_tf.balanced_labels(logits, result.potentials, lam=25.0)
for name, labels in (("plain argmax", logits.argmax(axis=1)), ("transport", result.labels), ("balanced exactly", balanced.labels)):
    sizes = np.bincount(labels, minlength=50)
    mean = np.take_along_axis(logits, labels[:, np.newaxis], axis=1).mean()
    print(f"{name}: clusters of {sizes.min()} to {sizes.max()} rows, mean logit {mean:.3f}")

# a new row needs nothing but the potentials
new = logits[:1] + 0.1
print(f"a new row goes to cluster {(25.0 * new + result.potentials).argmax()}")
