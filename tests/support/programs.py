"""Loads a checkpoint, answers about thirty documents, and writes how many programs were compiled.

python -m tests.support.programs CHECKPOINT CACHE
"""

import json
import sys

import jax
import numpy as np

from lclm_jax import Sampling, load
from lclm_jax.compilation import enable_cache

compiled, missed = [], []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
)
jax.monitoring.register_event_listener(
    lambda name, **_: missed.append(name) if name.endswith("cache_misses") else None
)
enable_cache(sys.argv[2])
model = load(sys.argv[1])
loading = len(compiled), len(missed)
rng = np.random.default_rng(0)
lengths = []
for number in range(30):
    text = " ".join(f"{word:x}" for word in rng.integers(0, 4096, int(10 ** rng.uniform(0.5, 3.4))))
    latents = model.compress(text)
    lengths.append(latents.tokens)
    sampling = Sampling(
        temperature=float(rng.choice([0.0, 0.7, 1.3])),
        top_k=int(rng.integers(0, 50)),
        top_p=float(rng.uniform(0.5, 1.0)),
        repetition_penalty=float(rng.uniform(1.0, 1.3)),
        min_tokens=int(rng.integers(0, 3)),
    )
    question = "Which? " * int(rng.integers(1, 40))
    model.generate([latents, question], int(rng.integers(1, 100)), sampling, seed=number)
sys.stdout.write(
    json.dumps(
        {
            "lengths": [min(lengths), max(lengths)],
            "loading": loading,
            "compiled": len(compiled) - loading[0],
            "missed": len(missed),
        }
    )
)
