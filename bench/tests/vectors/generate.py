"""Writes reference.json: samples, and what SciPy and statsmodels say of them.

    pip install scipy statsmodels
    python3 bench/tests/vectors/generate.py > bench/tests/vectors/reference.json

The tests of the statistics compare with these figures. The file is in the repository, so that the
tests need no Python.
"""

import json

import numpy as np
import scipy
import statsmodels
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.tsa.stattools import adfuller

rng = np.random.default_rng(20201)
DIGITS = 6


def rounded(sample):
    return [float(f"{x:.{DIGITS}g}") for x in sample]


def anderson_darling(name, sample):
    sample = rounded(sample)
    result = stats.anderson(np.array(sample), dist="expon")
    return {
        "name": name,
        "sample": sample,
        "statistic": result.statistic,
        "critical": dict(zip(map(str, result.significance_level), result.critical_values)),
    }


def dickey_fuller(name, sample):
    sample = rounded(sample)
    statistic, p, lags, count, critical, _ = adfuller(np.array(sample), regression="c", autolag="AIC")
    return {
        "name": name,
        "sample": sample,
        "statistic": statistic,
        "p": p,
        "lags": int(lags),
        "observations": int(count),
        "critical": critical,
    }


def spearman(name, sample, lags):
    sample = np.array(rounded(sample))
    rho, p = [], []
    for lag in range(1, lags + 1):
        result = stats.spearmanr(sample[:-lag], sample[lag:])
        rho.append(float(result.statistic))
        p.append(float(result.pvalue))
    reject, adjusted, _, _ = multipletests(p, alpha=0.05, method="holm")
    return {
        "name": name,
        "sample": sample.tolist(),
        "rho": rho,
        "p": p,
        "holm": adjusted.tolist(),
        "rejects": bool(reject.any()),
    }


def autoregressive(count, weight):
    noise = rng.normal(size=count)
    out = [0.0]
    for x in noise[1:]:
        out.append(weight * out[-1] + x)
    return np.array(out)


def order_statistics(count, quantile, confidence=0.95):
    """The narrowest symmetric-in-tails pair of ranks (from 1) that covers the quantile."""
    tail = (1 - confidence) / 2
    low = int(stats.binom.ppf(tail, count, quantile))
    high = int(stats.binom.ppf(1 - tail, count, quantile)) + 1
    return {"count": count, "quantile": quantile, "low": low, "high": high}


reference = {
    "made_by": {
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "statsmodels": statsmodels.__version__,
    },
    "anderson_darling": [
        anderson_darling("exponential", rng.exponential(3.0, 400)),
        anderson_darling("exponential, few", rng.exponential(0.01, 25)),
        anderson_darling("uniform", rng.uniform(0.0, 2.0, 300)),
        anderson_darling("gamma of shape 2", rng.gamma(2.0, 1.0, 300)),
    ],
    "dickey_fuller": [
        dickey_fuller("white noise", rng.normal(10.0, 1.0, 300)),
        dickey_fuller("random walk", np.cumsum(rng.normal(size=300))),
        dickey_fuller("autoregressive 0.9", 5 + autoregressive(400, 0.9)),
        dickey_fuller("trend", np.arange(250) * 0.05 + rng.normal(size=250)),
        dickey_fuller("latencies", rng.lognormal(3.0, 0.7, 500)),
    ],
    "spearman": [
        spearman("white noise", rng.lognormal(0.0, 1.0, 400), 40),
        spearman("autoregressive 0.6", autoregressive(300, 0.6), 20),
        spearman("ties", np.floor(rng.exponential(4.0, 300)), 30),
    ],
    "order_statistics": [
        order_statistics(count, quantile)
        for count in [1000, 12345, 100000, 1000000]
        for quantile in [0.5, 0.99, 0.999]
    ],
}
print(json.dumps(reference))
