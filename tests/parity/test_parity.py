"""NumPy, PyTorch and TensorFlow: the same problem, the same numbers.

The frameworks run in processes of their own, each under horovodrun, and write down their weights
after every step; here they are compared with each other and with the reference.
"""

import itertools
from pathlib import Path

import numpy as np
import pytest
from framework import installed
from launch import ROOT, horovodrun
from parity_plan import BETAS, EPSILON, MOMENTUM, STEPS, Case, cases, flat
from problem import X0, gradient

from slowmo_hvd.core.config import SlowMoConfig
from slowmo_hvd.core.reference import SGD, Adam, slowmo

TOLERANCE = 1e-6  # relative to the largest weight of the run
FRAMEWORKS = ("torch", "tensorflow")


def reference(case: Case, workers: int) -> np.ndarray:
    """[step, worker, weight]."""
    base = SGD(momentum=MOMENTUM) if case.inner == "SGD" else Adam(betas=BETAS, eps=EPSILON)
    config = SlowMoConfig(**case.slowmo)
    states = slowmo(
        X0,
        gradient,
        lambda step: (case.lr(step),) * len(X0),
        base,
        config,
        workers,
        steps=STEPS,
        flush_after=case.flush_after,
        fragment_of=[0, config.fragments - 1],
    )
    return np.array([[flat(x) for x in state.x] for state in states])


@pytest.mark.skipif(not all(map(installed, FRAMEWORKS)), reason="needs both frameworks")
@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.only_all_cases)])
def test_the_adapters_and_the_reference_agree_after_every_step(ranks: int, tmp_path: Path) -> None:
    env = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "TF_CPP_MIN_LOG_LEVEL": "2"}
    for framework in FRAMEWORKS:
        script = f"tests/parity/parity_{framework}.py"
        result = horovodrun(ranks, script, str(tmp_path), env=env)
        assert result.returncode == 0, result.stdout
    runs = {
        (framework, rank): np.load(tmp_path / f"{framework}-{rank}.npz")
        for framework, rank in itertools.product(FRAMEWORKS, range(ranks))
    }
    worst = 0.0
    for case in cases():
        everyone = {"NumPy": reference(case, ranks)} | {
            framework: np.stack([runs[framework, rank][case.name] for rank in range(ranks)], axis=1)
            for framework in FRAMEWORKS
        }
        scale = np.abs(everyone["NumPy"]).max()
        for (one, ours), (other, theirs) in itertools.combinations(everyone.items(), 2):
            apart = np.abs(ours - theirs).max() / scale
            assert apart < TOLERANCE, f"{case.name}: {one} and {other} are {apart:.1e} apart"
            worst = max(worst, apart)
    print(f"{ranks} ranks: at most {worst:.1e} apart")
