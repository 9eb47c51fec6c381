"""The target encoder: an exponential moving average (EMA) of the online encoder.

The published implementations that went wrong updated it before the optimizer step, once per micro-batch, without
buffers, in half precision, or left it in training mode. `EMAEncoder` rules each of these out but the first two,
which the objective's `after_step` rules out.

Book: chapters 01, 05.
"""

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

Schedule = Callable[[float], float]  # progress in [0, 1] -> tau in [0, 1]


def constant(tau: float = 0.996) -> Schedule:
    """tau, always."""
    _check(tau)
    return lambda progress: tau


def linear(start: float = 0.996, end: float = 1.0) -> Schedule:
    """start + progress (end - start). I-JEPA uses 0.996 -> 1."""
    _check(start, end)
    return lambda progress: start + (end - start) * _clamp(progress)


def cosine(start: float = 0.996, end: float = 1.0) -> Schedule:
    """end - (end - start)(1 + cos(pi progress))/2. BYOL uses 0.996 -> 1."""
    _check(start, end)
    return lambda progress: end - (end - start) * (1 + math.cos(math.pi * _clamp(progress))) / 2


def from_half_life(steps: int | float) -> Schedule:
    """The constant tau whose memory of a weight halves in `steps` updates: tau = 2^(-1/steps).

    tau = 0.996 has a half-life of 173 steps and 0.999 one of 693: long or short only against the length of a run.
    """
    if not steps > 0:
        raise ValueError(f"steps must be positive, got {steps}")
    return constant(0.5 ** (1 / steps))


SCHEDULES = {"constant": constant, "linear": linear, "cosine": cosine}


class EMAEncoder(nn.Module):
    """A copy of `online` whose weights follow it: theta_target <- tau theta_target + (1 - tau) theta_online.

    Call `update(progress)` once after every optimizer step. The average is kept in fp32 whatever the weights' dtype
    (in bfloat16 a step of 0.001 is lost to rounding and the target never moves), buffers such as BatchNorm statistics
    are copied, the copy is always in eval mode, and it never has gradients.

    Args:
        online: the encoder to follow. It is read, never registered, so its weights are not saved twice.
        schedule: tau as a function of progress, or a number for a constant tau.
    Paper: Grill et al. 2020 (BYOL), equation 1. Book: chapters 01, 05.
    """

    def __init__(self, online: nn.Module, schedule: Schedule | float = 0.996):
        super().__init__()
        self._online = (online,)  # a tuple, so that nn.Module does not register it as a child
        self.schedule = schedule if callable(schedule) else constant(schedule)
        self.target = copy.deepcopy(online).requires_grad_(False)
        self.register_buffer("tau", torch.tensor(_clamp(self.schedule(0.0))))  # of the last update, for logging
        self._keep_fp32(dict(self.target.named_parameters()))
        self.train(False)

    @torch.no_grad()
    def update(self, progress: float = 0.0) -> None:
        """Move the target a step towards the online encoder; `progress` in [0, 1] feeds the schedule."""
        tau = _clamp(self.schedule(progress))
        average, targets = _tensors(self.target)
        online, sources = _tensors(self._online[0])
        low = []
        if len(self._buffers) > 1:  # beside tau: some weights have an average of their own, in fp32
            for i, (name, target) in enumerate(self.target.named_parameters()):
                shadow = self._shadow(name)
                if shadow is not None:
                    low.append((target, shadow))
                    average[i] = shadow
        online = [source.float() if source.dtype in _LOW else source for source in online]
        _check_same(average, online, "weights")
        if average:  # an identity, say, has nothing to average
            torch._foreach_lerp_(average, online, 1 - tau)  # one fused call for all weights
        for target, shadow in low:
            target.copy_(shadow)
        _check_same(targets, sources, "buffers")
        if targets:
            torch._foreach_copy_(targets, sources)  # BatchNorm statistics are averages already; left, they stay as made
        self.tau.fill_(tau)

    @torch.no_grad()
    def forward(self, *args, **kwargs):
        return self.target(*args, **kwargs)

    def train(self, mode: bool = True):
        """Stays in eval mode whatever `mode` says: a target computed with dropout is another target at every call."""
        return super().train(False)

    # The fp32 average of a half-precision weight lives in a buffer of its own, so that it is saved and moved with the
    # module; casting the module (`.to(torch.bfloat16)`) must not cast it along.

    def _apply(self, fn, recurse: bool = True):
        exact = {}
        for name, p in self.target.named_parameters():
            shadow = self._shadow(name)
            exact[name] = (p if shadow is None else shadow).detach().clone()
        super()._apply(fn, recurse)
        self._keep_fp32(exact)
        self.tau = self.tau.float()
        return self

    def _keep_fp32(self, exact: dict[str, Tensor]) -> None:
        for name, p in self.target.named_parameters():
            key = _key(name)
            if p.dtype in _LOW:
                self.register_buffer(key, exact[name].to(p.device, torch.float32))
            elif key in self._buffers:
                p.data.copy_(exact[name])
                del self._buffers[key]

    def _shadow(self, name: str) -> Tensor | None:
        return self._buffers.get(_key(name))


def _tensors(module: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters and the buffers, in their order and each once, in one walk: the four that torch's own generators
    would take cost several times the averaging in a network of this size."""
    parameters: dict[int, Tensor] = {}
    buffers: dict[int, Tensor] = {}
    modules = [module]
    while modules:
        module = modules.pop()
        for found, tensors in ((parameters, module._parameters), (buffers, module._buffers)):
            for tensor in tensors.values():
                if tensor is not None:
                    found.setdefault(id(tensor), tensor)
        if module._modules:
            modules.extend(child for child in reversed(module._modules.values()) if child is not None)
    return list(parameters.values()), list(buffers.values())


def _check_same(targets: list[Tensor], sources: list[Tensor], what: str) -> None:
    if len(targets) != len(sources):
        raise ValueError(
            f"online must keep its {len(targets)} {what}, got {len(sources)}: make the EMAEncoder after the last change"
        )


_LOW = (torch.bfloat16, torch.float16)


def _key(name: str) -> str:
    return "fp32_" + name.replace(".", "/")  # not "_": a.b_c and a_b.c are two weights


def _clamp(x: float) -> float:
    """Into [0, 1]: a progress or tau beyond 1 would make the average diverge."""
    return min(max(x, 0.0), 1.0)


def _check(*taus: float) -> None:
    for tau in taus:
        if not 0 <= tau <= 1:
            raise ValueError(f"tau must lie in [0, 1], got {tau}")
