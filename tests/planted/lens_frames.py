"""The lens's tables by hand: two GRPO runs with and without float32 masters, and one of SFT."""

from __future__ import annotations

import numpy as np
import pandas as pd

from threegates.measures.lens import COUNTS, ENERGIES, RANGES

SIZE = 10_000
#: Updates, share that changed, share of energy hidden.
STEPS = ((8, 0.1, 0.8), (16, 0.25, 0.5), (32, 0.5, 0.2))


def _facts(algorithm: str, rate: str, speed: float, seed: int, master: str | None = None) -> dict:
    run = f"{algorithm}{'-own' if rate == 'own' else ''}{'-pure' if master else ''}-{seed}"
    method = "rl" if algorithm == "grpo" else "sft"
    facts = {"base": "b", "method": method, "algorithm": algorithm, "data": "d", "seed": seed, "rate": rate}
    return facts | {"learning_rate": speed, "run": run, "master": master}


def _runs() -> list[tuple[dict, tuple]]:
    runs = [(_facts("grpo", "mask", 5e-6, seed), STEPS) for seed in (1, 2)]
    runs += [(_facts("grpo", "mask", 5e-6, seed, "bfloat16"), ((32, 0.01, 0.0),)) for seed in (1, 2)]
    return [*runs, (_facts("sft-teacher", "own", 3e-4, 1), ((32, 0.6, 0.01),))]


def _checkpoints() -> list[tuple[dict, float, float]]:
    rows = []
    for facts, steps in _runs():
        for updates, share, energy in steps:
            last = updates == steps[-1][0]
            name = facts["run"] if last else f"{facts['run']}-step{updates}"
            place = {"pair": name, "step": updates // 4, "updates": updates, "last": last}
            rows.append(({**facts, **place}, share, energy))
    return rows


def lens() -> pd.DataFrame:
    """Two tensors a checkpoint, a fifth of the weights in a norm."""
    rows = []
    for facts, share, energy in _checkpoints():
        pure = facts["master"] == "bfloat16"
        for tensor, role, size in (("q", "q", SIZE * 4 // 5), ("n", "norm", SIZE // 5)):
            changed = round(share * size)
            moved = changed if pure else size
            numbers = dict.fromkeys((*COUNTS, *ENERGIES), 0) | {
                "size": size,
                "moved": moved,
                "changed": changed,
            }
            numbers |= {"hidden": moved - changed, "hidden_later": round(0.4 * (moved - changed))}
            numbers |= {"single_step": size // 50, "aligned_path": size, "noise_changed": changed}
            numbers |= {"half_ulp_exceptions": size // 1000, "half_ulp_exceptions_at_powers": size // 1000}
            energies = {"energy": 1.0, "energy_hidden": energy, "energy_stored": 1.0, "energy_common": 0.9}
            energies |= {"noise_energy": 1.0, "noise_energy_hidden": energy + 0.01}
            stored = {"stored_dtype_tuned": "BF16" if pure else "F32", "tensor": tensor, "role": role}
            rows.append({**facts, **stored, "layer": 0, **numbers, **energies})
    return pd.DataFrame(rows).astype({"seed": "Int64", "step": "Int64", "updates": "Int64", "layer": "Int64"})


def bins() -> pd.DataFrame:
    """Weights in four sizes, and displacements on either side of the half gap."""
    rows = []
    for facts, share, _ in _checkpoints():
        changed = round(share * SIZE)
        pure = facts["master"] == "bfloat16"
        place = {"pair": facts["pair"], "part": "linear", "last": facts["last"]}
        for number, log2 in enumerate((-6.0, -5.75, -5.5, -4.0)):
            count = {"count": SIZE // 4, "changed": round(changed * (0.4 - 0.1 * number))}
            rows.append({**place, "quantity": "weight", "log2": log2, **count})
        rows.append({**place, "quantity": "ratio", "log2": 1.0, "count": changed, "changed": changed})
        if not pure:
            rows.append({**place, "quantity": "ratio", "log2": -2.0, "count": SIZE - changed, "changed": 0})
    assert all(RANGES[row["quantity"]][0] <= row["log2"] < RANGES[row["quantity"]][1] for row in rows)
    return pd.DataFrame(rows)


def frame() -> pd.DataFrame:
    """One row a pair with its facts, as a study has them."""
    return lens().drop_duplicates("pair")


def log() -> pd.DataFrame:
    """Evaluations at two steps of every run."""
    facts = frame().drop_duplicates("run").drop(columns=["master", "updates"])
    rows = []
    for row in facts.to_dict("records"):
        for updates in (16, 32):
            numbers = {
                "updates": updates,
                "pass_at_1": 0.4,
                "kl": 1e-5 * updates,
                "delta_norm": 0.01 * updates,
            }
            rows.append({**row, **numbers})
        rows.append({**row, "updates": 20, "pass_at_1": np.nan, "kl": np.nan, "delta_norm": 0.2})
    return pd.DataFrame(rows)
