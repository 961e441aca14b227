"""The mixture of experts against a loop over tokens and experts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.config import TransformerConfig
from model.experts import grouped_linear
from model.init import initialise
from model.moe import MixtureOfExperts
from model.recompute import recomputed
from model.router import balance_loss, choice_counts, normalised

CONFIG = {"d_model": 16, "nhead": 2, "dim_feedforward": 96, "use_moe": True, "num_experts": 5}


def mixture(**changes: object) -> MixtureOfExperts:
    """Return a small mixture of experts, top 2 unless `changes` say otherwise."""
    result = MixtureOfExperts(TransformerConfig.model_validate({**CONFIG, **changes}))
    initialise(result, 0)
    return result


def token_by_token(moe: MixtureOfExperts, x: Tensor, gated: bool) -> Tensor:
    """Return sum_k gate_k * expert_k(x), computed for each token and expert, in fp64."""
    moe, x = moe.double(), x.double()
    result = torch.zeros_like(x)
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            p = (moe.router.weight @ x[b, t]).softmax(-1)
            top, chosen = p.topk(moe.router.top_k)
            for gate, e in zip(top / top.sum(), chosen, strict=True):
                first, *value = (weight @ x[b, t] for weight in moe.experts.input[e])
                hidden = F.silu(first) * value[0] if gated else F.gelu(first)
                result[b, t] += gate * (moe.experts.output[e] @ hidden)
    return result


@pytest.mark.parametrize("gated", [True, False])
def test_output_and_gradients_are_those_of_a_loop(gated: bool) -> None:
    moe = mixture(use_swiglu=gated, balance_loss=0.0)
    x = torch.randn(3, 7, 16)
    weight = torch.randn(3, 7, 16)
    result = moe(x)
    (result * weight).sum().backward()
    gradients = {n: p.grad.clone() for n, p in moe.named_parameters() if p.grad is not None}
    assert set(gradients) == {"router.weight", "experts.input", "experts.output"}
    moe.zero_grad()
    expected = token_by_token(moe, x, gated)
    (expected * weight).sum().backward()
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-6)
    for name, parameter in moe.named_parameters():
        torch.testing.assert_close(gradients[name].double(), parameter.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sizes", [(8, 16), (6, 10)], ids=["grouped", "loop"])
def test_grouped_product_with_empty_groups(sizes: tuple[int, int]) -> None:
    width, d = sizes
    x, w = torch.randn(9, d, requires_grad=True), torch.randn(4, width, d, requires_grad=True)
    counts = torch.tensor([0, 5, 0, 4])
    result = grouped_linear(x, w, counts)
    expected = torch.cat([x[:5] @ w[1].T, x[5:] @ w[3].T])
    torch.testing.assert_close(result, expected)
    result.square().sum().backward()
    assert w.grad is not None and (w.grad[0] == 0).all() and (w.grad[1] != 0).any()


def balance(scores: Tensor, chosen: Tensor, padding: Tensor | None = None) -> Tensor:
    """Return the balance loss of scores [B, T, E] and choices [B, T, K]."""
    counts = choice_counts(chosen, scores.shape[-1], padding)
    return balance_loss(normalised(scores), counts, padding)


def test_balance_loss_is_one_when_balanced_and_e_when_one_expert_takes_all() -> None:
    balanced = torch.full((2, 8, 4), 0.25)
    chosen = torch.arange(8).remainder(4).view(1, 8, 1).expand(2, 8, 1)
    torch.testing.assert_close(balance(balanced, chosen), torch.ones(2))
    always_first = torch.zeros(2, 8, 1, dtype=torch.long)
    skewed = F.one_hot(always_first.squeeze(-1), 4).float()
    torch.testing.assert_close(balance(skewed, always_first), torch.full((2,), 4.0))


def test_balance_loss_of_a_row_ignores_its_padding_and_other_rows() -> None:
    probability = torch.rand(3, 6, 4).softmax(-1)
    chosen = probability.topk(2).indices
    padding = torch.arange(6) >= torch.tensor([[6], [3], [0]])
    together = balance(probability, chosen, padding)
    alone = balance(probability[1:2, :3], chosen[1:2, :3])
    torch.testing.assert_close(together[1:2], alone)
    assert together[2] == 0


def test_auxiliary_gradient_is_attached_and_scaled() -> None:
    moe = mixture(balance_loss=0.5)
    moe.attached_scale = 0.25
    x = torch.randn(4, 6, 16)
    (moe(x) * 0).sum().backward()
    attached = moe.router.weight.grad
    assert attached is not None
    weight = moe.router.weight.detach().clone().requires_grad_()
    probability = (x @ weight.T).softmax(-1)
    loss = balance(probability, probability.topk(2).indices).mean() * 0.5 * 0.25
    (expected,) = torch.autograd.grad(loss, weight)
    torch.testing.assert_close(attached, expected, rtol=1e-5, atol=1e-8)


def test_statistics_are_counted_once_under_recomputation_and_not_in_evaluation() -> None:
    moe = mixture()
    x = torch.randn(2, 6, 16, requires_grad=True)
    recomputed(moe, x).sum().backward()
    statistics = moe.take_statistics()
    assert statistics is not None
    assert statistics.counts_E.sum() == 2 * 6 * 2 and statistics.rows == 2
    moe.eval()
    moe(x)
    assert moe.take_statistics() is None


def test_recomputation_gives_the_same_gradients() -> None:
    moe, x = mixture(), torch.randn(2, 6, 16)
    gradients = []
    for run in (moe, lambda h: recomputed(moe, h)):
        moe.zero_grad()
        run(x.clone().requires_grad_()).square().sum().backward()
        gradients.append([p.grad.clone() for p in moe.parameters() if p.grad is not None])
    for plain, again in zip(*gradients, strict=True):
        assert torch.equal(plain, again)


def test_capacity_keeps_each_experts_first_choices_of_a_row() -> None:
    moe = mixture(num_experts=2, top_k=1, capacity_factor=0.5, balance_loss=0.0)
    with torch.no_grad():
        moe.router.weight.zero_()
        moe.router.weight[0] += 1.0
    x = torch.rand(2, 8, 16)  # positive: every token chooses expert 0
    y = moe(x)
    assert (y[:, :2] != 0).any(-1).all() and (y[:, 2:] == 0).all()
    statistics = moe.take_statistics()
    assert statistics is not None
    assert statistics.counts_E.tolist() == [16, 0] and statistics.dropped.item() == 12
    padding = torch.zeros(2, 8, dtype=torch.bool)
    padding[:, :3] = True
    y = moe(x, padding)
    # The capacity is half an even share of the five tokens that are no padding, rounded up.
    assert (y[:, 3:5] != 0).any(-1).all() and (y[:, 5:] == 0).all() and (y[:, :3] == 0).all()


def test_capacity_does_not_depend_on_how_far_a_row_is_padded() -> None:
    moe, x = mixture(capacity_factor=0.7), torch.randn(1, 8, 16)
    longer = torch.cat([x, torch.randn(1, 8, 16)], 1)
    padding = torch.arange(16).unsqueeze(0) >= 8
    torch.testing.assert_close(moe(longer, padding)[:, :8], moe(x))


def test_a_single_choice_trains_the_router() -> None:
    moe, x = mixture(num_experts=4, top_k=1, balance_loss=0.0), torch.randn(2, 8, 16)
    moe(x).square().sum().backward()
    assert moe.router.weight.grad is not None and moe.router.weight.grad.abs().max() > 1e-2


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("top_k", [1, 2])
def test_scores_that_underflow_give_finite_numbers(score: str, top_k: int) -> None:
    moe = mixture(num_experts=4, top_k=top_k, router_score=score, balance_rate=0.1)
    with torch.no_grad():
        moe.router.weight[0] -= 400.0
        moe.router.weight[1:] -= 800.0
        moe.router.bias[2:] = 10.0
    y = moe(torch.ones(1, 4, 16))
    y.sum().backward()
    assert y.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in moe.parameters())


def test_experts_work_under_autocast() -> None:
    moe, x = mixture(), torch.randn(2, 8, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y = moe(x)
    assert (y - moe(x)).norm() < 2e-2 * y.norm()


def test_a_row_is_routed_independently_of_other_rows() -> None:
    moe = mixture(capacity_factor=1.0)
    x = torch.randn(6, 9, 16)
    together = moe(x)
    for row in range(6):
        torch.testing.assert_close(moe(x[row : row + 1]), together[row : row + 1])


def test_dropped_choices_have_no_gradient() -> None:
    moe = mixture(num_experts=2, top_k=1, capacity_factor=0.5, balance_loss=0.0)
    x = torch.randn(1, 8, 16, requires_grad=True)
    moe(x).square().sum().backward()
    kept = (moe(x) != 0).any(-1)
    assert x.grad is not None
    assert (x.grad[~kept] == 0).all() and (x.grad[kept] != 0).any()


def test_a_bias_changes_choices_but_not_gates() -> None:
    balance = {"balance_rate": 0.1, "balance_loss": 0.0}
    moe = mixture(num_experts=4, top_k=1, router_score="sigmoid", **balance)
    x = torch.randn(2, 6, 16)
    before = moe.router(x)
    moe.router.bias[3] = 10.0
    after = moe.router(x)
    assert (after.chosen == 3).all() and not (before.chosen == 3).all()
    torch.testing.assert_close(after.gates, before.scores[..., 3:])
    torch.testing.assert_close(after.scores, before.scores)
    moe.router.bias.zero_()
    moe.router.rebalance(torch.tensor([10.0, 0.0, 5.0, 5.0]))
    torch.testing.assert_close(moe.router.bias, torch.tensor([-0.1, 0.1, 0.0, 0.0]))


def test_bias_balancing_balances() -> None:
    moe = mixture(num_experts=8, top_k=2, balance_rate=0.002, balance_loss=0.0)
    torch.manual_seed(0)
    x = torch.randn(16, 32, 16) + 1.0
    imbalance = []
    for _ in range(400):
        moe(x)
        statistics = moe.take_statistics()
        assert statistics is not None
        moe.router.rebalance(statistics.counts_E)
        load = statistics.counts_E / statistics.counts_E.sum()
        imbalance.append(float(load.max() * 8))
    assert imbalance[0] > 1.8 and imbalance[-1] < 1.3


def test_the_bias_stays_fp32_in_bf16_and_is_saved() -> None:
    moe = mixture(balance_rate=0.1).bfloat16()
    assert moe.router.bias.dtype == torch.float32 and moe.router.weight.dtype == torch.bfloat16
    assert "router.bias" in moe.state_dict()
    assert "router.bias" not in mixture().state_dict()


def test_z_loss_is_the_squared_log_partition() -> None:
    moe = mixture(z_loss=0.3, balance_loss=0.0)
    x, padding = torch.randn(2, 5, 16), torch.zeros(2, 5, dtype=torch.bool)
    padding[1, 2:] = True
    moe(x, padding)
    statistics = moe.take_statistics()
    assert statistics is not None
    partition = (x @ moe.router.weight.T).logsumexp(-1).square()
    expected = 0.3 * (partition[0].mean() + partition[1, :2].mean())
    assert statistics.loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_shared_expert_computes_every_token() -> None:
    moe = mixture(shared_expert=True)
    assert moe.shared is not None
    x = torch.randn(2, 5, 16)
    with_it = moe(x)
    shared, moe.shared = moe.shared, None
    torch.testing.assert_close(with_it, moe(x) + shared(x))


def test_noise_changes_choices_in_training_only() -> None:
    moe = mixture(router_noise=5.0)
    x = torch.randn(4, 9, 16)
    assert not torch.equal(moe.router(x).chosen, moe.router(x).chosen)
    moe.eval()
    assert torch.equal(moe.router(x).chosen, moe.router(x).chosen)


def test_entropy_and_loads_leave_padding_out() -> None:
    moe = mixture(num_experts=4)
    with torch.no_grad():
        moe.router.weight.zero_()
    padding = torch.zeros(2, 6, dtype=torch.bool)
    padding[0, 1:] = True
    moe(torch.randn(2, 6, 16), padding)
    statistics = moe.take_statistics()
    assert statistics is not None
    assert statistics.tokens.item() == 7 and statistics.counts_E.sum().item() == 14
    assert (statistics.entropy / statistics.tokens).item() == pytest.approx(1.3863, abs=1e-4)
