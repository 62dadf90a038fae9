"""What a text makes the sites of one model read, and what its loss wants them to write: sums over tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from rebase.lora.low_rank import Site
from rebase.training.preconditioned_step import GradientMoments
from workers.models import TextModel
from workers.training.rows import Row, logs, split, stacked

Step = Callable[[int, int], None]  # parts done, of how many


def slopes_of(
    base: TextModel, rows: Sequence[Row], sites: Sequence[Site], budget: int, step: Step
) -> Iterator[tuple[Site, GradientMoments]]:
    """Each site with its sums, the loss being the mean cross-entropy of the tokens that are to be learnt.

    One pass forward and back over the rows gathers as many sites as fit into `budget` bytes, one at least;
    memory does not grow with the text.
    """
    windows = list(_windows(base, sites, budget))
    pieces = list(split(base, rows))
    learnt = max(sum(sum(row.kept) for row in rows), 1)
    for number, window in enumerate(windows):
        sums = {site: GradientMoments.zeros(*base.weights.shape(site), base.device) for site in window}
        for done, piece in enumerate(pieces):
            step(number * len(pieces) + done, len(windows) * len(pieces))
            ids, _, kept = stacked(piece, base.device)
            real = torch.zeros_like(ids, dtype=torch.bool)
            for at, row in enumerate(piece):
                real[at, : len(row.ids)] = True
            with _tapped(base, sums, real), torch.enable_grad():
                loss = -logs(base, ids, kept > 0).sum() / learnt
                loss.backward()  # type: ignore[no-untyped-call]
        yield from sums.items()
    step(len(windows) * len(pieces), len(windows) * len(pieces))


def _windows(base: TextModel, sites: Sequence[Site], budget: int) -> Iterator[list[Site]]:
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
def _tapped(base: TextModel, sums: dict[Site, GradientMoments], real: Tensor) -> Iterator[None]:
    """While a loss is computed and differentiated, every site's rows go into its sums. `real`: (n, longest),
    which tokens are no padding. No parameter asks for a gradient, so what the model embeds has to."""
    modules: dict[str, list[Site]] = {}
    for site in sums:
        modules.setdefault(base.architecture.module(site), []).append(site)
    with ExitStack() as hooks:
        embedding = base.model.get_input_embeddings()
        hooks.callback(embedding.register_forward_hook(_asking).remove)
        for sites in modules.values():
            handle = base.module(sites[0]).register_forward_hook(_adding(base, sites, sums, real))
            hooks.callback(handle.remove)
        yield


def _asking(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
    return output.requires_grad_()


def _adding(base: TextModel, sites: list[Site], sums: dict[Site, GradientMoments], real: Tensor) -> Any:
    def forward(_module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        read = inputs[0].detach()[real]

        def backward(gradient: Tensor) -> None:
            wanted = gradient[real]
            for site in sites:
                rows = base.rows(site)
                sums[site].add(read, wanted if rows is None else wanted[:, rows])

        output.register_hook(backward)  # type: ignore[no-untyped-call]

    return forward
