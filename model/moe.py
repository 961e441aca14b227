"""Mixture of experts: each token is computed by the experts that the router chooses for it.

Shapes: B rows, T tokens of a row, N = B * T, K choices per token, E experts, D = d_model.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from model.config import TransformerConfig
from model.experts import Experts, compute_locally
from model.feedforward import make_feed_forward
from model.recompute import is_recomputing
from model.router import (
    RoutedPass,
    Router,
    RouterStatistics,
    Routing,
    balance_loss,
    choice_counts,
    normalised,
    within_capacity,
    z_loss,
)
from model.tracing import is_traced

MAX_PASSES = 64
"""Forward passes whose statistics are kept one by one: to add them up costs operations."""


class _AttachLoss(torch.autograd.Function):
    """Returns `x` and, in the backward pass, adds the gradient of scale * loss.

    The auxiliary loss gets its gradient where it arises, so no loss travels between pipeline
    stages.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(loss)
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (loss,) = ctx.saved_tensors
        return gradients[0], torch.full_like(loss, ctx.scale), None


class LossHolder:
    """Holds the auxiliary loss of a forward pass; a copy of it holds none, as it has no graph."""

    def __init__(self) -> None:
        self.loss: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"loss": None}

    def take(self) -> Tensor | None:
        """Return the loss, None if there is none, and forget it."""
        loss, self.loss = self.loss, None
        return loss


class MixtureOfExperts(nn.Module):
    """A router, its experts, and optionally a shared expert that computes every token."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.router = Router(config)
        self.experts = Experts(config)
        self.shared = make_feed_forward(config) if config.shared_expert else None
        self.capacity_factor = config.capacity_factor
        self.balance_weight, self.z_weight = config.balance_loss, config.z_loss
        self.attached_scale: float | None = None
        """Scale at which the auxiliary loss is attached to the output, which gives it its gradient:
        that of the main loss, 1 / accumulated micro-batches. None: `auxiliary` holds the loss."""
        self.auxiliary = LossHolder()
        """Mean over rows of the auxiliary loss of the last forward in training."""
        self._sums: RouterStatistics | None = None
        self._passes: list[RoutedPass] = []
        """What was counted since the last `take_statistics`: sums, and the passes since they were
        made; torch.compile counts none."""

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """Return the gated sum of the chosen experts' outputs for x [B, T, D].

        padding [B, T] bool is True on tokens that losses and statistics leave out.
        """
        routing = self.router(x)
        chosen_NK, gates_NK = routing.chosen.flatten(0, 1), routing.gates.flatten(0, 1)
        kept = self._kept(routing.chosen, padding)
        # Dropped choices have no gate. Not to compute them costs a GPU's host the wait for their
        # number, which it waits for anyway where they would be sent to another rank.
        is_local = self.experts.exchange is compute_locally
        is_complete = kept is None or is_traced() or (x.is_cuda and is_local)
        if kept is not None:
            kept_NK = kept.flatten(0, 1)
            gates_NK = gates_NK * kept_NK
            if not is_complete:
                chosen_NK = chosen_NK.where(kept_NK, self.experts.count)
        shared: list[Tensor] = []

        def compute_shared() -> None:
            if self.shared is not None:
                shared.append(self.shared(x))

        rows = x.flatten(0, 1)
        y = self.experts(rows, chosen_NK, gates_NK, is_complete, compute_shared).view_as(x)
        for one in shared:
            y = y + one
        if self.training and torch.is_grad_enabled():
            y = self._with_auxiliary_loss(y, routing, kept, padding)
        return y

    def _with_auxiliary_loss(
        self, y: Tensor, routing: Routing, kept: Tensor | None, padding: Tensor | None
    ) -> Tensor:
        """Count the forward pass, and attach the auxiliary loss to y or hold it."""
        share_BTE = normalised(routing.scores)
        counts_BE = choice_counts(routing.chosen, share_BTE.shape[-1], padding)
        loss_B = self.balance_weight * balance_loss(share_BTE, counts_BE, padding)
        if self.z_weight:
            loss_B = loss_B + self.z_weight * z_loss(routing.logits, padding)
        if not is_recomputing() and not is_traced():
            self._count(share_BTE, counts_BE, loss_B, kept, padding)
        if self.attached_scale is not None:
            return cast(Tensor, _AttachLoss.apply(y, loss_B.mean(), self.attached_scale))
        if not is_recomputing():
            self.auxiliary.loss = loss_B.mean()
        return y

    def _kept(self, chosen: Tensor, padding: Tensor | None) -> Tensor | None:
        """Return which choices are kept, [B, T, K] bool; None if none can be dropped."""
        if self.capacity_factor is None:
            return None
        return within_capacity(chosen, self.experts.count, self.capacity_factor, padding)

    @torch.no_grad()
    def _count(
        self,
        share_BTE: Tensor,
        counts_BE: Tensor,
        loss_B: Tensor,
        kept: Tensor | None,
        padding: Tensor | None,
    ) -> None:
        """Keep what one forward pass adds to the statistics; sums are left for later."""
        entropy = torch.special.entr(share_BTE)
        if padding is not None:
            entropy = entropy.masked_fill_(padding.unsqueeze(-1), 0.0)
        accepted = None if kept is None else kept.sum()
        seen = RoutedPass(counts_BE, accepted, entropy.sum(dtype=torch.float64), loss_B.detach())
        self._passes.append(seen)
        if len(self._passes) == MAX_PASSES:
            self._sums = self._added()
            self._passes.clear()

    def _added(self) -> RouterStatistics | None:
        """Return the sums and what passes have added since."""
        if not self._passes:
            return self._sums
        added = RouterStatistics.of_passes(self._passes, self.router.top_k)
        return added if self._sums is None else self._sums + added

    def take_statistics(self) -> RouterStatistics | None:
        """Return the sums since the last call, None if there are none, and resets them."""
        sums = self._added()
        self._sums = None
        self._passes.clear()
        return sums
