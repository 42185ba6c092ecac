"""LSTM and GRU cells, and the same unrolled over captions for training on a CPU.

There, the inputs that are known before the first step are multiplied for all steps at once.

Shapes as in `pipeline.decoders.decoder`; n is the number of tokens of all captions, B_t that of the
captions at a step.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.decoders.recurrent import init_forget_bias


class RNNCell(nn.Module):
    """An LSTM or GRU cell; the first tensor of its state is its output (B, H)."""

    def __init__(self, rnn_type: str, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.num_tensors = 2 if rnn_type == "lstm" else 1  # of its state
        self.cell = (nn.LSTMCell if rnn_type == "lstm" else nn.GRUCell)(input_size, hidden_size)
        init_forget_bias(self.cell)

    def forward(self, inputs: Tensor, hidden: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if self.num_tensors == 2:
            return self.cell(inputs, hidden)
        return (self.cell(inputs, hidden[0]),)


class UnrolledCell:
    """An `RNNCell` over `PackedCaptions`, some of whose inputs are known before the first step."""

    def __init__(
        self, rnn: RNNCell, columns: slice, known: Tensor | None, sizes: Sequence[int]
    ) -> None:
        """
        Args:
            columns: of the input weights, for the inputs that come step by step.
            known: (n, gates), the products of the other inputs with their weights, if any.
            sizes: the number of captions at each step.
        """
        cell = rnn.cell
        inputs, hidden = cell.weight_ih[:, columns], cell.weight_hh
        if known is None:
            known = inputs.new_zeros(sum(sizes), len(inputs))
        self._is_lstm = rnn.num_tensors == 2
        if self._is_lstm:
            both = torch.cat([inputs, hidden], dim=1)
            self._gates = UnrolledLinear(both, known + cell.bias_ih + cell.bias_hh, sizes)
        else:
            self._input_gates = UnrolledLinear(inputs, known + cell.bias_ih, sizes)
            self._hidden_gates = UnrolledLinear(hidden, cell.bias_hh.expand_as(known), sizes)

    def __call__(self, inputs: Sequence[Tensor], hidden: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The state after the next step; `inputs` side by side make `columns`."""
        if self._is_lstm:
            gates = self._gates(torch.cat([*inputs, hidden[0]], dim=1))
            i, f, g, o = gates.chunk(4, dim=1)
            c = torch.sigmoid(f) * hidden[1] + torch.sigmoid(i) * torch.tanh(g)
            return torch.sigmoid(o) * torch.tanh(c), c
        r_i, z_i, n_i = self._input_gates(torch.cat(list(inputs), dim=1)).chunk(3, dim=1)
        r_h, z_h, n_h = self._hidden_gates(hidden[0]).chunk(3, dim=1)
        n = torch.tanh(n_i + torch.sigmoid(r_i + r_h) * n_h)
        return (n + torch.sigmoid(z_i + z_h) * (hidden[0] - n),)


class UnrolledLinear:
    """A linear layer within a recurrence: `known` + `inputs` @ `weight`.T, step by step.

    Autograd would compute and add a gradient of the whole weight at every step. Here the inputs of
    all steps are kept, and one product gives the gradient.
    """

    def __init__(self, weight: Tensor, known: Tensor, sizes: Sequence[int]) -> None:
        """`weight` (O, I); `known` (n, O), what to add at all steps, of `sizes` rows each."""
        self._inputs: list[Tensor] = []
        self._known = iter(_UnrolledWeight.apply(known, weight, self._inputs).split(list(sizes)))
        autocast = torch.is_autocast_enabled("cpu")  # which would cast the weight at every step
        dtype = torch.get_autocast_dtype("cpu") if autocast else weight.dtype
        self._weight = weight.detach().to(dtype).t()

    def __call__(self, inputs: Tensor) -> Tensor:
        """(B_t, I) -> (B_t, O), at the next step."""
        inputs = inputs.to(self._weight.dtype)
        if torch.is_grad_enabled():
            self._inputs.append(inputs.detach())
        return torch.addmm(next(self._known), inputs, self._weight)


class _UnrolledWeight(torch.autograd.Function):
    """`known` itself; its backward pass, after those of all steps, gives the weight's gradient."""

    @staticmethod
    def forward(ctx: Any, known: Tensor, weight: Tensor, inputs: list[Tensor]) -> Tensor:
        ctx.inputs = inputs  # filled by the steps
        return known.view_as(known)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad,), inputs = gradients, torch.cat(ctx.inputs)
        return grad, grad.t().to(inputs.dtype) @ inputs, None
