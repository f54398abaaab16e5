"""FastAPI over PyTorch on the CPU: the same weights from safetensors, eager mode."""

import os
from collections.abc import Sequence

import torch
from safetensors.torch import load_file

from loadgen.stacks.fastapi_card import Array, Columns, Infer, make_app, serve


class CardModel(torch.nn.Module):  # type: ignore[misc]  # torch is not in the environment that is checked
    """Normalise, clip, 40→256→128→1, sigmoid."""

    mean: torch.Tensor
    inverse_std: torch.Tensor

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.clip = float(weights.pop("clip"))
        self.register_buffer("mean", torch.empty(40))
        self.register_buffer("inverse_std", torch.empty(40))
        self.layers = torch.nn.ModuleList([torch.nn.Linear(40, 256), torch.nn.Linear(256, 128), torch.nn.Linear(128, 1)])
        self.load_state_dict(weights)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        x = ((features - self.mean) * self.inverse_std).clamp(-self.clip, self.clip)
        x = torch.relu(self.layers[0](x))
        x = torch.relu(self.layers[1](x))
        return torch.sigmoid(self.layers[2](x)).squeeze(1)


def load() -> Infer:
    model = CardModel(load_file(os.environ["STACK_WEIGHTS"])).eval()

    def infer(vectors: Array) -> Sequence[float]:
        with torch.inference_mode():
            risks: list[float] = model(torch.from_numpy(vectors)).tolist()
        return risks

    return infer


app = make_app(load, Columns())

if __name__ == "__main__":
    serve("serve_torch")
