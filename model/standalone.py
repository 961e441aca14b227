"""What the library's classes have in common: stacks that are used without Forescale's training."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from model.config import TransformerConfig
from model.errors import UserError
from model.init import initialise
from model.moe import LossHolder, MixtureOfExperts
from model.recompute import Recompute
from model.stack import Stack, run_layer


class StandaloneStack(Stack):
    """A stack whose user computes the loss and makes the steps."""

    def __init__(
        self, input_size: int, config: TransformerConfig, layers: nn.ModuleList, recompute: bool
    ) -> None:
        super().__init__(nn.Linear(input_size, config.d_model), config, layers)
        self.input_size = input_size
        self.recompute: Recompute = "block" if recompute else "none"
        self._auxiliary = LossHolder()
        self._has_warned = False

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights, which inputs have, too, unless autocast changes both."""
        return next(self.parameters()).dtype

    def _initialise(self) -> None:
        """Draw all weights.

        The seed comes from torch's generator: torch.manual_seed makes weights repeatable, and no
        two modules start alike.
        """
        initialise(self, int(torch.randint(2**62, (), device="cpu")))

    def aux_loss(self) -> Tensor:
        """Return the auxiliary loss of the last forward in training, to be added to the loss.

            loss = criterion(model(x), y) + model.aux_loss()

        It is the sum over layers of the mixtures of experts' balance and z-losses, weighted by
        `balance_loss` and `z_loss`, each the mean over sequences; a scalar, and zero without
        mixtures. Raises UserError where no forward in training came before.
        """
        loss = self._auxiliary.take()
        if loss is not None:
            return loss
        if not any(isinstance(module, MixtureOfExperts) for module in self.modules()):
            return torch.zeros((), device=next(self.parameters()).device)
        raise UserError(
            "aux_loss: there was no forward in training since the last call: call train() and the "
            "model first, once for each call of aux_loss()"
        )

    def rebalance(self) -> None:
        """Move the experts' biases towards balance by `balance_rate`; call it after each step.

        It uses the choices of all forwards in training since the last call.
        """
        for module in self.modules():
            if isinstance(module, MixtureOfExperts):
                statistics = module.take_statistics()
                if statistics is not None:
                    module.router.rebalance(statistics.counts_E)

    def _forget_auxiliary_loss(self) -> None:
        """Begin a forward pass; warn once where nobody has taken the loss of the one before."""
        if self._auxiliary.take() is None or self._has_warned:
            return
        self._has_warned = True
        warnings.warn(
            "the auxiliary loss, which balances the experts, was left out: add aux_loss() to the "
            "loss, or set balance_loss=0 and z_loss=0",
            UserWarning,
            stacklevel=4,
        )

    def _run(self, layer: nn.Module, *arguments: Any, **options: Any) -> Tensor:
        """Run one layer and add its auxiliary loss to the forward pass's."""
        y = run_layer(layer, *arguments, recompute=self.recompute, **options)
        mixture = layer.feed_forward
        loss = mixture.auxiliary.take() if isinstance(mixture, MixtureOfExperts) else None
        if loss is not None:
            before = self._auxiliary.loss
            self._auxiliary.loss = loss if before is None else before + loss
        return y
