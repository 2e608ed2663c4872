"""Rows and results of benchmarks as files hold them, made up."""

ROOFS = {"matmul_gflops": 101.4, "copy_gb_per_s": 5.06, "tanh_g_per_s": 0.307}


def row(implementation="attention_zoo", ratio=1.0, case="B2", run="one", **others):
    figures = {"ratio": ratio, "ratio_low": 0.9 * ratio, "ratio_high": 1.1 * ratio, "temporary_bytes": 3_000_000}
    named = {"benchmark": "sine", "case": case, "direction": "forward+gradient", "dtype": "float32"}
    return {**named, "implementation": implementation, "median_ms": 7.0, **figures, "run": run, **others}


def result(*rows, **runs):
    given = {"versions": {"jax": "0.10.2", "python": "3.11.7"}, "roofs": ROOFS}
    return {
        "machine": "Abacus, 1 core",
        "device": "",
        "runs": {**{one["run"]: given for one in rows}, **runs},
        "rows": list(rows),
    }
