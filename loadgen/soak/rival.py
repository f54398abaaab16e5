"""Models to swap in during a soak: small random networks for the running spec, with a card that passes every check."""

import hashlib
from pathlib import Path

import msgspec
import numpy as np

from features.plan import compile_plan
from features.spec import load_spec
from models.card import ARTIFACTS, Golden, load_card, save_artifact
from models.graph import Network, build_graph, run_graph

CLIP = 10.0
HIDDEN = 16


def make_rivals(directory: Path, spec: str, n: int) -> list[str]:
    """`n` artifacts below `directory`; what decisions call them."""
    packaged = load_card(ARTIFACTS / spec)
    assert packaged.golden is not None
    inputs = np.array(packaged.golden.inputs, dtype=np.float32)
    width = compile_plan(load_spec(spec)).n_features
    names = []
    for seed in range(n):
        draw = np.random.default_rng(seed)
        weights = [draw.normal(0, 0.5, shape).astype(np.float32) for shape in ((width, HIDDEN), (HIDDEN, 1))]
        biases = [np.zeros(HIDDEN, dtype=np.float32), np.array([-3.0], dtype=np.float32)]
        network = Network(inputs.mean(axis=0), (1 / (inputs.std(axis=0) + 1)).astype(np.float32), CLIP, weights, biases)
        model = build_graph(network, {"weir.seed": str(seed)})
        digest = hashlib.sha256(model).hexdigest()
        golden = Golden(packaged.golden.inputs, [float(risk) for risk in run_graph(model, inputs)])
        card = msgspec.structs.replace(packaged, name=f"rival{seed}", version=digest[:12], sha256=digest, golden=golden)
        save_artifact(directory / card.name, model, card)
        names.append(f"{card.name}@{card.version}")
    return names
