"""What several tests start from: seeded float64 tensors, and modules away from their initial zeros."""

import torch


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shake(module, seed=1, size=0.3):
    """Away from the zeros that a module starts with."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(size * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return module
