"""The mean wait in M/H2/k, in units of the mean service time, solved as a Markov chain.

A request is of the short kind with probability 0.9 and of the long kind, whose mean is ten times that
of the short, with 0.1; all times are exponential. A state is (how many are in the system, how many of
those in service are long). Above k requests the chain is the same at every level, so its stationary
distribution is found by the matrix R of Neuts: pi[n + 1] = pi[n] R.

Run with numpy; the figures are in src/model/routing.rs.
"""

import numpy as np


def wait(k, load):
    short, long = 1.9, 0.19
    rate = load * k
    p = 0.1

    def blocks(n):
        """Transitions from level n: down, the same, up; and the sizes of the levels."""
        here, below, above = min(n, k) + 1, min(n - 1, k) + 1, min(n + 1, k) + 1
        up = np.zeros((here, above))
        down = np.zeros((here, max(below, 0))) if n else None
        for j in range(here):
            if n < k:
                up[j, j] += rate * (1 - p)
                up[j, j + 1] += rate * p
            else:
                up[j, j] += rate
            shorts = min(n, k) - j
            if n and n <= k:
                if shorts:
                    down[j, j] += shorts * short
                if j:
                    down[j, j - 1] += j * long
            elif n:
                # The next one that waits takes the place.
                down[j, j] += shorts * short * (1 - p) + j * long * p
                if shorts:
                    down[j, j + 1] += shorts * short * p
                if j:
                    down[j, j - 1] += j * long * (1 - p)
        out = up.sum(1) + (down.sum(1) if n else 0)
        return down, -np.diag(out), up

    down, same, up = blocks(k + 1)
    r = np.zeros_like(same)
    for _ in range(200_000):
        new = -up @ np.linalg.inv(same + r @ down)
        if abs(new - r).max() < 1e-15:
            break
        r = new
    # Levels 0 to k, with level k + 1 = pi[k] R folded in.
    sizes = [n + 1 for n in range(k + 1)]
    starts = np.cumsum([0] + sizes)
    q = np.zeros((starts[-1], starts[-1]))
    for n in range(k + 1):
        down_n, same_n, up_n = blocks(n)
        rows = slice(starts[n], starts[n + 1])
        q[rows, rows] += same_n
        if n:
            q[rows, starts[n - 1] : starts[n]] += down_n
        if n < k:
            q[rows, starts[n + 1] : starts[n + 2]] += up_n
    last = slice(starts[k], starts[k + 1])
    q[last, last] += r @ blocks(k + 1)[0]
    ones = np.ones(starts[-1])
    beyond = np.linalg.inv(np.eye(k + 1) - r)
    ones[last] = beyond @ np.ones(k + 1)
    a = np.vstack([q.T, ones])
    pi = np.linalg.lstsq(a, np.append(np.zeros(starts[-1]), 1.0), rcond=None)[0]
    # The mean number that waits: sum over n of n pi[k] R^n.
    waiting = pi[last] @ r @ beyond @ beyond @ np.ones(k + 1)
    return waiting / rate


for k, load in [(1, 0.7), (2, 0.7), (4, 0.8)]:
    print(k, load, wait(k, load))
# M/H2/1 by Pollaczek and Khinchine: load E[S²] / 2 (1 - load).
second = 2 * (0.9 / 1.9**2 + 0.1 / 0.19**2)
print("M/H2/1 is known to be", 0.7 * second / 2 / 0.3)
