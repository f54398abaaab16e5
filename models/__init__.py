"""Scorers, model cards, the seeded generator, training and evaluation.

A bank's scorer must not phone home: onnxruntime reads this variable when its library loads, so it is set before any import.
"""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
