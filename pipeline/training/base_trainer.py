"""What both kinds of training share: a decoder, its optimiser, its moving average, their state."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pipeline.config.schema import ScstConfig, TrainConfig
from pipeline.dataset.split import Split
from pipeline.decoders.decoder import Decoder
from pipeline.distributed.ranks import Ranks
from pipeline.runtime.checkpoint import State
from pipeline.training.ema import ModelEma
from pipeline.training.history import Row
from pipeline.training.optimizer import load_optimizer, save_optimizer

Result = TypeVar("Result")


class BaseTrainer(ABC):
    """Trains a decoder; `ema_decoder` is the one to caption with."""

    def __init__(
        self,
        decoder: Decoder,
        split: Split,
        config: TrainConfig | ScstConfig,
        dtype: torch.dtype,
        optimizer: torch.optim.Optimizer,
        ranks: Ranks,
    ) -> None:
        """
        Args:
            split: the images and captions to train on.
            dtype: to compute in, by autocast unless it is float32.
            ranks: that share each batch, and keep the same weights.
        """
        self.ranks = ranks
        self.decoder, self.split, self.dtype, self.optimizer = decoder, split, dtype, optimizer
        self.device = decoder.feature_mean.device
        self._clip_norm = config.clip_norm
        self._ema = ModelEma(decoder, config.ema_decay)
        self.ema_decoder = self._ema.decoder

    @abstractmethod
    def train_epoch(self, epoch: int, after_step: Callable[[], None] = lambda: None) -> Row:
        """Train one epoch, or the rest of the one that a loaded state is in.

        Args:
            after_step: called after every step.

        Returns:
            The epoch's columns of the history.

        Raises:
            InputError: the loss or its gradient is no longer finite.
        """

    @abstractmethod
    def _check_finite(self) -> None:
        """Raise an InputError if the sums over this epoch's steps are not finite."""

    def _data_parallel(self, loss: Callable[..., Result]) -> Callable[..., Result]:
        """The loss of the decoder, on several ranks so that `backward` averages the gradients."""
        if self.ranks.size == 1:
            return loss
        return self.ranks.data_parallel(_Loss(self.decoder, loss))

    def _update(self, loss: Tensor) -> Tensor:
        """Backward, clip the gradient's norm, and step; may be part of a CUDA graph.

        Returns:
            0, or NaN if the gradient was not finite. Added to a running sum, a NaN shows whenever
            the sum is read, without a synchronisation in every step.
        """
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(list(self.decoder.parameters()), self._clip_norm)
        self.optimizer.step()
        self._ema.update()
        return norm - norm

    def state_dict(self) -> State:
        """Everything that the next step depends on."""
        self._check_finite()  # a broken state must not replace a good one
        tensors, header = save_optimizer(self.optimizer)
        for name, module in self._modules().items():
            tensors |= {f"{name}/{key}": value for key, value in module.state_dict().items()}
        if self.ema_decoder is not self.decoder:
            tensors["ema_updates"] = torch.tensor(self._ema.num_updates)
        tensors["rng/cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["rng/cuda"] = torch.cuda.get_rng_state(self.device)
        return tensors, header

    def load_state_dict(self, state: State) -> None:
        """Continue from what `state_dict` returned."""
        tensors, header = state
        load_optimizer(self.optimizer, tensors, header)
        for name, module in self._modules().items():
            prefix = f"{name}/"
            own = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
            module.load_state_dict(own)
        self._ema.num_updates = int(tensors.get("ema_updates", 0))
        torch.set_rng_state(tensors["rng/cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["rng/cuda"], self.device)

    def _modules(self) -> dict[str, Decoder]:
        """The decoders by their names in the state: one is its own average without an EMA."""
        averaged = {} if self.ema_decoder is self.decoder else {"ema": self.ema_decoder}
        return {"decoder": self.decoder, **averaged}


class _Loss(nn.Module):
    """A loss as a module with the decoder's weights, as data parallelism takes it."""

    def __init__(self, decoder: Decoder, loss: Callable[..., Any]) -> None:
        super().__init__()
        self.decoder, self.forward = decoder, loss
