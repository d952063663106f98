"""NumPy float64 references, written from the definitions and sharing no code with the library."""

import jax  # for pytrees alone
import numpy as np

# Analytic continuations, so that complex steps give exact derivatives.
ACTIVATIONS = {"sin": np.sin, "tanh": np.tanh, "relu": lambda x: np.where(x.real > 0, x, 0.0)}


def dense(layer, x):
    y = x @ layer["kernel"]
    return y + layer["bias"] if "bias" in layer else y


def mlp(layers, x, activation="sin"):
    """Layers {"kernel": [in, out], "bias": [out] or absent}, with the activation between them."""
    for layer in layers[:-1]:
        x = ACTIVATIONS[activation](dense(layer, x))
    return dense(layers[-1], x)


def layer_norm(scale, x, epsilon=1e-6):
    centred = x - x.mean(axis=-1, keepdims=True)
    return scale * centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon)


def layer_normed_mlp(layers, x, activation):
    """Layers by Flax's names, with LayerNorm before each activation; its scale and bias are 1 and 0 where absent."""
    hidden = sum(name.startswith("Dense") for name in layers) - 1
    for i in range(hidden):
        learned = layers.get(f"LayerNorm_{i}", {"scale": 1.0, "bias": 0.0})
        x = layer_norm(learned["scale"], dense(layers[f"Dense_{i}"], x)) + learned["bias"]
        x = ACTIVATIONS[activation](x)
    return dense(layers[f"Dense_{hidden}"], x)


def float64(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def flatten(params):
    """All parameters in one vector [d], and the way back."""
    leaves, structure = jax.tree.flatten(float64(params))
    ends = np.cumsum([leaf.size for leaf in leaves])

    def unflatten(vector):
        parts = np.split(vector, ends[:-1])
        return structure.unflatten([part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)])

    return np.concatenate([leaf.ravel() for leaf in leaves]), unflatten


def gradients(q, params, inputs, step=1e-30):
    """[B, d]: d Q(x_i) / d theta_k by complex steps, exact to rounding as no difference is taken."""
    vector, unflatten = flatten(params)
    inputs = jax.tree.map(np.asarray, inputs)
    columns = []
    for k in range(vector.size):
        moved = vector.astype(np.complex128)
        moved[k] += 1j * step
        columns.append(np.broadcast_to(q(unflatten(moved), inputs), len(jax.tree.leaves(inputs)[0])).imag / step)
    return np.stack(columns, axis=1)


def gradient(loss, params, step=1e-30):
    """Of loss(params), a number, by complex steps; a pytree like the parameters."""
    vector, unflatten = flatten(params)
    moved = vector + 1j * step * np.eye(len(vector))
    return unflatten(np.array([loss(unflatten(row)).imag / step for row in moved]))


def adam(params, gradients, learning_rate=1e-3):
    """Parameters after Adam's steps along one gradient after the other (Kingma and Ba 2015, Algorithm 1)."""
    x, unflatten = flatten(params)
    m, v = np.zeros_like(x), np.zeros_like(x)
    for t, gradient in enumerate((flatten(g)[0] for g in gradients), start=1):
        m = 0.9 * m + 0.1 * gradient
        v = 0.999 * v + 0.001 * gradient**2
        x = x - learning_rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return unflatten(x)


def polyak(target, params, rate=0.995):
    return jax.tree.map(lambda old, new: rate * old + (1 - rate) * new, target, params)


def _layers(params):
    layers = params["params"]["MLP_0"]
    return [layers[f"Dense_{i}"] for i in range(len(layers))]


def critic(params, observation, action, activation="relu"):
    """Q(s, a) [B] of a Critic's parameters."""
    return mlp(_layers(params), np.concatenate([observation, action], axis=1), activation)[:, 0]


def actor(params, observation, activation="relu"):
    """mu(s) [B, A] of an Actor's parameters."""
    return np.tanh(mlp(_layers(params), observation, activation))


def gaussian_actor(params, observation, activation="relu"):
    """Mean and log_std [B, A] of a GaussianActor's parameters; log_std is not clipped."""
    return np.split(mlp(_layers(params), observation, activation), 2, axis=1)


def twin_critic_step(critics, start, gradients, data, target):
    """(critics, what is reported) after one Adam step of both towards one target; ``gradients`` keeps those so far."""

    def errors(params):
        return np.array([target - critic(c, data.observation, data.action) for c in params])

    before = errors(critics)
    info = {
        "td_error": np.sqrt((before**2).mean()),
        "critic_loss": (before[0] ** 2).mean() + (before[1] ** 2).mean(),
        "q": np.mean([critic(c, data.observation, data.action).mean() for c in critics]),
    }
    gradients.append(gradient(lambda params: (errors(params) ** 2).mean(axis=1).sum(), critics))
    return adam(start, gradients), info


def minimum(a, b):
    """Of real parts, so that it can be complex-stepped."""
    return np.where(a.real < b.real, a, b)


def squashed_log_prob(mean, log_std, noise):
    """log pi(tanh(u)), u = mean + std noise, with the change of variables as it is defined [B]."""
    u = mean + np.exp(log_std) * noise
    gaussian = -(noise**2) / 2 - log_std - np.log(2 * np.pi) / 2
    return (gaussian - np.log(1 - np.tanh(u) ** 2)).sum(axis=-1)


def cosine(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.dot(a, b) / np.sqrt(np.dot(a, a) * np.dot(b, b))


def residual(gram, z, td_error):
    gram, z, td_error = (np.asarray(x, np.float64) for x in (gram, z, td_error))
    return np.sqrt(np.sum((gram @ z - td_error) ** 2) / np.sum(td_error**2))


def lstsq(gram, td_error, rcond):
    """Minimum-norm least squares, singular values below rcond times the largest cut off."""
    u, s, vt = np.linalg.svd(np.asarray(gram, np.float64))
    inverse = np.array([1 / value if value > rcond * s[0] else 0.0 for value in s])
    return vt.T @ (inverse * (u.T @ np.asarray(td_error, np.float64)))


def ridge(gram, td_error, damping):
    """(K + damping mean(diag K) I)^-1 delta."""
    gram = np.asarray(gram, np.float64)
    n = len(gram)
    return np.linalg.solve(gram + damping * np.trace(gram) / n * np.eye(n), np.asarray(td_error, np.float64))


def backtrack(q, params, direction, td_error, step_size, min_alignment, decay, max_backtracks):
    """(step size, cosine, number of backtracks), over vectors; step size None where no trial passes."""
    start = q(params)
    for k in range(max_backtracks + 1):
        step = step_size * decay**k
        reached = cosine(q(params + step * direction) - start, td_error)
        if reached >= min_alignment:
            return step, reached, k
    return None, reached, max_backtracks


def row_ratio(gram):
    n = len(gram)
    return np.array([sum(abs(gram[i, j]) for j in range(n) if j != i) / gram[i, i] / n for i in range(n)])


def effective_rank(gram):
    p = np.linalg.svd(gram, compute_uv=False)  # a Gram matrix's singular values are its eigenvalues
    p = p[p > 0] / p.sum()
    return np.exp(-np.sum(p * np.log(p)))


def td_target(reward, discount, next_value, gamma):
    return np.array([r if d == 0 else r + gamma * d * v for r, d, v in zip(reward, discount, next_value, strict=True)])
