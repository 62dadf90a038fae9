"""The corpus of `distill`: what the source and its adapter write, what each token owes to the adapter.

Token scores after TiTok [2510.04682], text from the adapter itself after Trans-LoRA [2405.17258]; no text of
the task is needed.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from rebase.errors import TrainingFailed
from rebase.lora.low_rank import LowRank, Site
from rebase.methods.base_params import DistillSettings, SamplingParams
from rebase.report.progress import ProgressReporter
from rebase.schemas.states import Phase
from rebase.training.losses import SharedTokenIds
from workers.foretold import foretold
from workers.models import TextModel, updated
from workers.training.checkpoint import identity_of
from workers.training.samples import Journal, Sample, Written, flaw
from workers.training.sampling import context, opened, opening, write
from workers.training.shift import LISTED, shift_in

_BATCH = 64  # samples written side by side
_ENOUGH = 3  # times the tokens asked for: when so many are drawn, what is usable must do
_PASSES = 8  # over the prompts; later ones write little that is new


def written_by(
    source: TextModel,
    deltas: Mapping[Site, LowRank],
    params: SamplingParams,
    *,
    watch: ProgressReporter,
    path: Path | None = None,
    common: SharedTokenIds | None = None,
) -> Written:
    """Samples of S+Δ with `params.tokens` usable tokens, or what there is after three times as many.

    `path`: where they are kept as they come; `common`: tokens on which the shift is kept with them, where the
    settings ask for it. Raises TrainingFailed when fewer than two can be used, or none can be drawn.
    """
    prompts = _prompts(source, params)
    journal = Journal(path, _identity(source, deltas, params))
    found = journal.read()
    while not _enough(found, params, len(prompts)):
        watch.update(Phase.COLLECTING, min(found.tokens, params.tokens), params.tokens, "tokens")
        batch = _batch(source, deltas, params, prompts, found, common if _shifts(params) else None)
        journal.append(found.batches, *batch)
        found.add(*batch)
    watch.update(Phase.COLLECTING, params.tokens, params.tokens, "tokens")
    if len(found.samples) < 2:
        reasons = ", ".join(f"{count} {why}" for why, count in sorted(found.dropped.items()))
        raise TrainingFailed(
            f"The source and its adapter wrote no text to train on ({reasons or 'none at all'}).",
            hint="Give prompts of the adapter's task, or another temperature.",
            pointer="/method/prompts",
        )
    return found


def _prompts(source: TextModel, params: SamplingParams) -> list[list[int]]:
    """Ids that writing begins from; a long prompt keeps its beginning-of-text token and its end."""
    room = context(source) - _length(source, params)
    first = opening(source)
    head = [] if first is None else [first]
    bodies = [source.encode(prompt).ids[int(source.bos is not None) :] for prompt in params.prompts or ("",)]
    found = [[*head, *body[-(room - len(head)) :]] for body in bodies]
    if not all(found):
        raise TrainingFailed(
            "The source has no token that begins or ends a text, so it cannot write from nothing.",
            hint="Give prompts of the adapter's task.",
            pointer="/method/prompts",
        )
    return found


def _length(source: TextModel, params: SamplingParams) -> int:
    return min(params.length, context(source) // 2)


def _enough(found: Written, params: SamplingParams, prompts: int) -> bool:
    if found.tokens >= params.tokens or found.drawn >= _ENOUGH * params.tokens:
        return True
    passes = found.batches * _size(params, prompts) / prompts
    if params.temperature == 0.0:
        return passes >= 1
    return params.prompts is not None and passes >= _PASSES


def _size(params: SamplingParams, prompts: int) -> int:
    needed = -(-params.tokens // params.length)
    return min(_BATCH, prompts) if params.temperature == 0.0 else min(_BATCH, needed)


def _batch(
    source: TextModel,
    deltas: Mapping[Site, LowRank],
    params: SamplingParams,
    prompts: list[list[int]],
    found: Written,
    common: SharedTokenIds | None,
) -> tuple[list[Sample], Counter[str], int]:
    """Usable samples, the flaws of the others, and how many tokens were drawn."""
    size = _size(params, len(prompts))
    begun = [prompts[(found.batches * size + at) % len(prompts)] for at in range(size)]
    try:
        with updated(source, deltas):
            drawn = write(
                source,
                begun,
                _length(source, params),
                temperature=params.temperature,
                top_p=params.top_p,
                seed=params.seed * 1_000_003 + found.batches,
            )
    except FloatingPointError as exc:
        raise TrainingFailed(
            "The source with its adapter gave probabilities that are not finite while it wrote.",
            hint="See that the adapter works on its own base and that neither holds numbers far too large, "
            "or raise a temperature near 0.",
            pointer="/adapter",
        ) from exc
    known = {sample.text for sample in found.samples}
    dropped: Counter[str] = Counter()
    fresh: dict[str, tuple[int, bool]] = {}
    for prompt, ids in zip(begun, drawn, strict=True):
        ended = ids[-1] in source.eos
        body = ids[:-1] if ended else ids
        asked, text = source.decode(prompt), source.decode([*prompt, *body]).rstrip("\ufffd")
        start = _common(asked, text)
        why = flaw(text[start:], body, prompted=params.prompts is not None)
        why = why or ("twice" if text in known or text in fresh else None)
        if why:
            dropped[why] += 1
        else:
            fresh[text] = (start, ended)
    samples = _scored(source, deltas, fresh, common)
    return samples, dropped, sum(map(len, drawn))


def _common(a: str, b: str) -> int:
    """Characters that both begin with: a token may reach over the prompt's end."""
    for at, (ours, theirs) in enumerate(zip(a, b, strict=False)):
        if ours != theirs:
            return at
    return min(len(a), len(b))


def _scored(
    source: TextModel,
    deltas: Mapping[Site, LowRank],
    texts: Mapping[str, tuple[int, bool]],
    common: SharedTokenIds | None,
) -> list[Sample]:
    """Both models read each text again, cut into tokens as the tokenizer cuts it."""
    read = [opened(source, text, context(source)) for text in texts]
    rows = [encoded.ids for encoded in read]
    written = [
        [at for at, (start, end) in enumerate(encoded.offsets) if at > 0 and end > max(prompt, start)]
        for encoded, (prompt, _) in zip(read, texts.values(), strict=True)
    ]
    firsts = [own[0] if own else len(row) for own, row in zip(written, rows, strict=True)]
    alone = foretold(source, rows, firsts)
    with updated(source, deltas):
        teacher = foretold(source, rows, firsts)
    samples = []
    for number, (text, (prompt, ended)) in enumerate(texts.items()):
        own, first = written[number], firsts[number]
        samples.append(
            Sample(
                text=text,
                prompt=prompt,
                spans=[read[number].offsets[at] for at in own],
                teacher=[teacher[number][at - first][0] for at in own],
                source=[alone[number][at - first][0] for at in own],
                ended=ended,
                shift=shift_in(source, deltas, read[number], prompt, common) if common else None,
            )
        )
    return samples


def _shifts(params: SamplingParams) -> bool:
    """Is the shift to be learnt?"""
    return isinstance(params, DistillSettings) and params.shift > 0.0


def _identity(source: TextModel, deltas: Mapping[Site, LowRank], params: SamplingParams) -> str:
    """What decides the samples: settings of the sampling, what ends a text, and the update. The
    bases are the job's own."""
    wanted = {"tokens", "prompts", "temperature", "top_p", "length", "seed"}
    return identity_of(
        settings=params.model_dump(mode="json", include=wanted),
        deltas=digest(deltas),
        vocabulary=int(source.model.config.vocab_size),
        ends=list(source.eos),
        **({"listed": LISTED} if _shifts(params) else {}),
    )


def digest(deltas: Mapping[Site, LowRank]) -> str:
    """Of every factor's bytes."""
    sha = hashlib.sha256()
    for site in sorted(deltas):
        sha.update(str(site).encode())
        for factor in (deltas[site].A, deltas[site].B):
            sha.update(factor.detach().cpu().float().contiguous().numpy().data)
    return sha.hexdigest()
