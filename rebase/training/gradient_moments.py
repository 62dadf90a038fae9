"""Second moments of the inputs and output gradients at each site of a model, summed over tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from rebase.lora.low_rank import Site
from rebase.models.causal_lm import CausalLM
from rebase.training.batches import EncodedSample, collate, compute_masked_logprobs, iter_batches
from rebase.training.preconditioned_step import GradientMoments

ProgressCallback = Callable[[int, int], None]  # parts done, of how many


def collect_gradient_moments(
    base: CausalLM,
    rows: Sequence[EncodedSample],
    sites: Sequence[Site],
    budget: int,
    report_progress: ProgressCallback,
) -> Iterator[tuple[Site, GradientMoments]]:
    """Each site with its moments; the loss is the mean cross-entropy over the loss mask.

    One forward and backward pass over the rows covers as many sites as fit into `budget` bytes, at least one;
    memory does not grow with the text.
    """
    windows = list(_split_into_windows(base, sites, budget))
    batches = list(iter_batches(base, rows))
    token_count = max(sum(sum(row.loss_mask) for row in rows), 1)
    for number, window in enumerate(windows):
        moments = {site: GradientMoments.zeros(*base.weights.shape(site), base.device) for site in window}
        for done, batch in enumerate(batches):
            report_progress(number * len(batches) + done, len(windows) * len(batches))
            ids, _, loss_mask = collate(batch, base.device)
            attention_mask = torch.zeros_like(ids, dtype=torch.bool)
            for at, row in enumerate(batch):
                attention_mask[at, : len(row.ids)] = True
            with _register_hooks(base, moments, attention_mask), torch.enable_grad():
                loss = -compute_masked_logprobs(base, ids, loss_mask > 0).sum() / token_count
                loss.backward()  # type: ignore[no-untyped-call]
        yield from moments.items()
    report_progress(len(windows) * len(batches), len(windows) * len(batches))


def _split_into_windows(base: CausalLM, sites: Sequence[Site], budget: int) -> Iterator[list[Site]]:
    window: list[Site] = []
    used = 0
    for site in sites:
        o, i = base.weights.shape(site)
        size = 4 * (i * i + o * o + o * i)
        if window and used + size > budget:
            yield window
            window, used = [], 0
        window.append(site)
        used += size
    if window:
        yield window


@contextmanager
def _register_hooks(
    base: CausalLM, moments: dict[Site, GradientMoments], attention_mask: Tensor
) -> Iterator[None]:
    """Accumulate the moments during forward and backward passes. `attention_mask`: (n, longest), False for
    padding. No parameter requires a gradient, so the embedding output has to."""
    modules: dict[str, list[Site]] = {}
    for site in moments:
        modules.setdefault(base.architecture.get_module_name(site), []).append(site)
    with ExitStack() as hooks:
        embedding = base.model.get_input_embeddings()
        hooks.callback(embedding.register_forward_hook(_require_grad).remove)
        for sites in modules.values():
            handle = base.get_module(sites[0]).register_forward_hook(
                _make_hook(base, sites, moments, attention_mask)
            )
            hooks.callback(handle.remove)
        yield


def _require_grad(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
    return output.requires_grad_()


def _make_hook(
    base: CausalLM, sites: list[Site], moments: dict[Site, GradientMoments], attention_mask: Tensor
) -> Any:
    def forward(_module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        site_inputs = inputs[0].detach()[attention_mask]

        def backward(gradient: Tensor) -> None:
            site_gradients = gradient[attention_mask]
            for site in sites:
                rows = base.get_output_rows(site)
                moments[site].add(site_inputs, site_gradients if rows is None else site_gradients[:, rows])

        output.register_hook(backward)  # type: ignore[no-untyped-call]

    return forward
