"""A low-rank change of a U-Net's weights that is trained apart from them (Hu et al. 2021, arXiv:2106.09685)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

RANK = 8
ENDINGS = (
    "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "net.0.proj", "net.2",
    "conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv",
)  # fmt: skip


class Lora(nn.Module):
    """Two factors for every layer named in ENDINGS; the product starts at zero."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.names = [name for name, _ in unet.named_modules() if name.endswith(ENDINGS)]
        down, up = {}, {}
        for name in self.names:
            weight = unet.get_parameter(f"{name}.weight")
            down[self.key(name)] = nn.Parameter(torch.randn(RANK, *weight.shape[1:]) / weight[0].numel() ** 0.5)
            up[self.key(name)] = nn.Parameter(torch.zeros(len(weight), RANK, *(1 for _ in weight.shape[2:])))
        self.down, self.up = nn.ParameterDict(down), nn.ParameterDict(up)

    @staticmethod
    def key(name: str) -> str:
        return name.replace(".", "-")

    def weights(self, base: dict[str, nn.Parameter]) -> dict[str, Tensor]:
        """The changed weights by their names."""
        out = {}
        for name in self.names:
            weight = base[f"{name}.weight"]
            change = self.up[self.key(name)].flatten(1) @ self.down[self.key(name)].flatten(1)
            out[f"{name}.weight"] = weight + change.view(weight.shape)
        return out

    def read(self, state: dict[str, Tensor]) -> None:
        self.load_state_dict(state)

    def published(self) -> dict[str, Tensor]:
        """Named as diffusers saves a LoRA."""
        out = {}
        for name in self.names:
            out[f"unet.{name}.lora_A.weight"] = self.down[self.key(name)].detach()
            out[f"unet.{name}.lora_B.weight"] = self.up[self.key(name)].detach()
        return out
