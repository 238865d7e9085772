"""The same training three ways: `Stack` (ours), `Loop` over runs in plain PyTorch, `Scan` in JAX.

Each starts from the weights of an ibutils model, [runs, fan_out, fan_in] (or [runs, d] of the linear one), on data
X [runs, n, d], y [runs, n]; `advance(steps)` trains all runs, and `losses()` are the logistic losses it has reached, [runs].
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

import ibutils as ib

LR = 1e-3


class Stack:
    """ibutils: all runs in one stack of tensors."""

    def __init__(self, net, X: Tensor, y: Tensor, make=torch.optim.Adam, loss=ib.losses.logistic, **settings):
        self.net, self.X, self.y, self.loss = net, X, y, loss
        self.opt = make(net.parameters(), **{"lr": LR} | settings)

    def margins(self) -> Tensor:
        return self.y * self.net(self.X)

    def advance(self, steps: int) -> None:
        for _ in ib.train(self.opt, self.margins, self.loss, steps, pauses=()):
            pass

    def losses(self) -> np.ndarray:
        return ib.losses.logistic(self.margins()).detach().cpu().numpy()


class SharedStack(Stack):
    """The linear model again, for X [sets, n, d] that each `runs / sets` runs in a row have in common."""

    def margins(self) -> Tensor:
        w = self.net.weight.unflatten(0, (len(self.X), -1))
        return (self.y.unsqueeze(1) * torch.bmm(w, self.X.mT)).flatten(0, 1)


class Products:
    """The matrix products of a step of `Stack` on an MLP and nothing else: what torch's kernels take at these sizes."""

    def __init__(self, weights: list[Tensor], X: Tensor):
        self.weights = [W.detach() for W in weights]
        self.inputs = [X.mT]
        for W in self.weights:
            self.inputs.append(torch.bmm(W, self.inputs[-1]))

    def advance(self, steps: int) -> None:
        for _ in range(steps):
            h = self.inputs[0]
            for W in self.weights:
                h = torch.bmm(W, h)
            for W, h, g in reversed(list(zip(self.weights, self.inputs, self.inputs[1:], strict=False))):
                torch.bmm(g, h.mT)  # the gradient of W
                if W is not self.weights[0]:
                    torch.bmm(W.mT, g)  # that of h, which the data do not need


class Closed(Stack):
    """ReLU networks again, with the gradient of the logistic loss written out and every rectification in place."""

    def advance(self, steps: int) -> None:
        rectified = torch.ops.aten.threshold_backward.grad_input
        for _ in range(steps):
            weights = [W.detach() for W in self.net.weights]
            inputs = [self.X.mT]
            for W in weights[:-1]:
                inputs.append(torch.bmm(W, inputs[-1]).relu_())
            y = self.y.unsqueeze(1)
            g = -y / y.shape[-1] * torch.sigmoid(-y * torch.bmm(weights[-1], inputs[-1]))
            for l in reversed(range(len(weights))):
                self.net.weights[l].grad = torch.bmm(g, inputs[l].mT)
                if l:
                    g = torch.bmm(weights[l].mT, g)
                    rectified(g, inputs[l], 0, grad_input=g)
            self.opt.step()


class Compiled(Stack):
    """The model through torch.compile; needs a C++ compiler."""

    def __init__(self, net, *data, **settings):
        super().__init__(net, *data, **settings)
        self.net = torch.compile(net, options={"max_autotune": True})


class Loop:
    """A run after another, each an nn.Sequential with an optimizer of its own."""

    def __init__(self, weights: list[Tensor], X: Tensor, y: Tensor, make=torch.optim.Adam, **settings):
        self.X, self.y = X, y.unsqueeze(-1)
        self.nets = [sequential([W[r] for W in weights]) for r in range(len(X))]
        self.opts = [make(net.parameters(), **{"lr": LR} | settings) for net in self.nets]

    def advance(self, steps: int) -> None:
        for net, opt, X, y in zip(self.nets, self.opts, self.X, self.y, strict=True):
            for _ in range(steps):
                opt.zero_grad()
                softplus(-y * net(X)).mean().backward()
                opt.step()

    def losses(self) -> np.ndarray:
        found = [softplus(-y * net(X)).mean() for net, X, y in zip(self.nets, self.X, self.y, strict=True)]
        return torch.stack(found).detach().cpu().numpy()


def sequential(weights: list[Tensor]) -> nn.Sequential:
    """Linear layers of these weights [fan_out, fan_in], no biases, with ReLUs in between."""
    layers = []
    for W in weights:
        W = W.detach().clone().reshape(-1, W.shape[-1])
        layer = nn.Linear(W.shape[1], W.shape[0], bias=False, dtype=W.dtype, device=W.device)
        layer.weight = nn.Parameter(W)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Scan:
    """JAX: jit of a lax.scan over ten steps, vmapped over runs; X and y may have fewer first dimensions' entries: `shared`."""

    def __init__(self, weights: list[Tensor], X: Tensor, y: Tensor, shared: int = 1):
        import jax

        jax.config.update("jax_enable_x64", True)
        self.jax, jnp = jax, jax.numpy
        group = lambda a: a.reshape(-1, shared, *a.shape[1:])
        weights = [jnp.asarray(group(W.detach().cpu().numpy())) for W in weights]
        self.data = tuple(jnp.asarray(a[::shared].cpu().numpy()) for a in (X, y))
        zeros = lambda: [jnp.zeros_like(W) for W in weights]
        steps = jnp.zeros(weights[0].shape[:2])
        self.state, self.ten, self.value = (weights, zeros(), zeros(), steps), *compiled(jax)

    def advance(self, steps: int) -> None:
        for _ in range(steps // 10):
            self.state = self.ten(self.state, *self.data)
        self.jax.block_until_ready(self.state)

    def losses(self) -> np.ndarray:
        return np.asarray(self.value(self.state[0], *self.data)).flatten()


def compiled(jax):
    """(ten steps, loss) for states (weights, m, v, t) of [groups, shared, ...] and data of [groups, ...]."""
    jnp = jax.numpy

    def loss(weights, X, y):
        h = X
        for W in weights[:-1]:
            h = jax.nn.relu(h @ W.T)
        return jax.nn.softplus(-y * (h @ weights[-1].reshape(-1))).mean()

    def step(state, X, y):
        weights, m, v, t = state
        g, t = jax.grad(loss)(weights, X, y), t + 1
        m = [0.9 * m + 0.1 * g for m, g in zip(m, g, strict=True)]
        v = [0.999 * v + 0.001 * g**2 for v, g in zip(v, g, strict=True)]
        rate, scale = LR / (1 - 0.9**t), jnp.sqrt(1 - 0.999**t)
        move = [(rate * m / (jnp.sqrt(v) / scale + 1e-8)).astype(m.dtype) for m, v in zip(m, v, strict=True)]
        return [W - d for W, d in zip(weights, move, strict=True)], m, v, t

    def over_runs(f):
        return jax.vmap(jax.vmap(f, (0, None, None)), (0, 0, 0))

    def ten(state, X, y):
        return jax.lax.scan(lambda state, _: (over_runs(step)(state, X, y), None), state, length=10)[0]

    return jax.jit(ten, donate_argnums=0), jax.jit(over_runs(loss))


def jax_on(device: str) -> bool:
    """JAX is installed and computes on that device."""
    try:
        import jax
    except ImportError:
        return False
    return jax.default_backend() == {"cpu": "cpu", "cuda": "gpu"}[device]
