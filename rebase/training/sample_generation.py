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
from rebase.models.causal_lm import TextModel, updated
from rebase.models.generation import encode_with_bos, generate, get_bos_id, get_max_positions
from rebase.models.logprobs import foretold
from rebase.report.progress import ProgressReporter
from rebase.schemas.states import Phase
from rebase.training.checkpoint import compute_identity
from rebase.training.logit_shift import MAX_LISTED_TOKENS, compute_teacher_shift
from rebase.training.losses import SharedTokenIds
from rebase.training.samples import Sample, SampleLog, SampleSet, find_rejection_reason

_BATCH_SIZE = 64  # samples written side by side
_MAX_DRAWN_FACTOR = 3  # times the tokens asked for: when so many are drawn, what is usable must do
_MAX_PASSES = 8  # over the prompts; later ones write little that is new


def generate_samples(
    source: TextModel,
    deltas: Mapping[Site, LowRank],
    params: SamplingParams,
    *,
    progress: ProgressReporter,
    path: Path | None = None,
    shared_tokens: SharedTokenIds | None = None,
) -> SampleSet:
    """Samples of S+Δ with `params.tokens` usable tokens, or what there is after three times as many.

    `path`: where they are kept as they come; `common`: tokens on which the shift is kept with them, where the
    settings ask for it. Raises TrainingFailed when fewer than two can be used, or none can be drawn.
    """
    prompts = _encode_prompts(source, params)
    sample_log = SampleLog(path, _compute_identity(source, deltas, params))
    sample_set = sample_log.read()
    while not _has_enough(sample_set, params, len(prompts)):
        progress.update(Phase.COLLECTING, min(sample_set.tokens, params.tokens), params.tokens, "tokens")
        batch = _generate_batch(
            source, deltas, params, prompts, sample_set, shared_tokens if _uses_shift(params) else None
        )
        sample_log.append(sample_set.batch_count, *batch)
        sample_set.add(*batch)
    progress.update(Phase.COLLECTING, params.tokens, params.tokens, "tokens")
    if len(sample_set.samples) < 2:
        reasons = ", ".join(f"{count} {why}" for why, count in sorted(sample_set.dropped.items()))
        raise TrainingFailed(
            f"The source and its adapter wrote no text to train on ({reasons or 'none at all'}).",
            hint="Give prompts of the adapter's task, or another temperature.",
            pointer="/method/prompts",
        )
    return sample_set


def _encode_prompts(source: TextModel, params: SamplingParams) -> list[list[int]]:
    """Ids that writing begins from; a long prompt keeps its beginning-of-text token and its end."""
    max_prompt_tokens = get_max_positions(source) - _get_max_new_tokens(source, params)
    bos = get_bos_id(source)
    prefix = [] if bos is None else [bos]
    bodies = [source.encode(prompt).ids[int(source.bos is not None) :] for prompt in params.prompts or ("",)]
    encoded = [[*prefix, *body[-(max_prompt_tokens - len(prefix)) :]] for body in bodies]
    if not all(encoded):
        raise TrainingFailed(
            "The source has no token that begins or ends a text, so it cannot write from nothing.",
            hint="Give prompts of the adapter's task.",
            pointer="/method/prompts",
        )
    return encoded


def _get_max_new_tokens(source: TextModel, params: SamplingParams) -> int:
    return min(params.length, get_max_positions(source) // 2)


def _has_enough(sample_set: SampleSet, params: SamplingParams, prompt_count: int) -> bool:
    if sample_set.tokens >= params.tokens or sample_set.drawn_tokens >= _MAX_DRAWN_FACTOR * params.tokens:
        return True
    passes = sample_set.batch_count * _compute_batch_size(params, prompt_count) / prompt_count
    if params.temperature == 0.0:
        return passes >= 1
    return params.prompts is not None and passes >= _MAX_PASSES


def _compute_batch_size(params: SamplingParams, prompt_count: int) -> int:
    needed = -(-params.tokens // params.length)
    return min(_BATCH_SIZE, prompt_count) if params.temperature == 0.0 else min(_BATCH_SIZE, needed)


def _generate_batch(
    source: TextModel,
    deltas: Mapping[Site, LowRank],
    params: SamplingParams,
    prompts: list[list[int]],
    sample_set: SampleSet,
    shared_tokens: SharedTokenIds | None,
) -> tuple[list[Sample], Counter[str], int]:
    """Usable samples, the flaws of the others, and how many tokens were drawn."""
    size = _compute_batch_size(params, len(prompts))
    batch_prompts = [prompts[(sample_set.batch_count * size + at) % len(prompts)] for at in range(size)]
    try:
        with updated(source, deltas):
            generated = generate(
                source,
                batch_prompts,
                _get_max_new_tokens(source, params),
                temperature=params.temperature,
                top_p=params.top_p,
                seed=params.seed * 1_000_003 + sample_set.batch_count,
            )
    except FloatingPointError as exc:
        raise TrainingFailed(
            "The source with its adapter gave probabilities that are not finite while it wrote.",
            hint="See that the adapter works on its own base and that neither holds numbers far too large, "
            "or raise a temperature near 0.",
            pointer="/adapter",
        ) from exc
    known_texts = {sample.text for sample in sample_set.samples}
    dropped: Counter[str] = Counter()
    accepted: dict[str, tuple[int, bool]] = {}
    for prompt, ids in zip(batch_prompts, generated, strict=True):
        ended = ids[-1] in source.eos
        body = ids[:-1] if ended else ids
        prompt_text, text = source.decode(prompt), source.decode([*prompt, *body]).rstrip("\ufffd")
        start = _common_prefix_length(prompt_text, text)
        reason = find_rejection_reason(text[start:], body, has_prompt=params.prompts is not None)
        reason = reason or ("twice" if text in known_texts or text in accepted else None)
        if reason:
            dropped[reason] += 1
        else:
            accepted[text] = (start, ended)
    samples = _score_samples(source, deltas, accepted, shared_tokens)
    return samples, dropped, sum(map(len, generated))


def _common_prefix_length(a: str, b: str) -> int:
    """Characters that both begin with: a token may reach over the prompt's end."""
    for at, (first_char, second_char) in enumerate(zip(a, b, strict=False)):
        if first_char != second_char:
            return at
    return min(len(a), len(b))


def _score_samples(
    source: TextModel,
    deltas: Mapping[Site, LowRank],
    texts: Mapping[str, tuple[int, bool]],
    shared_tokens: SharedTokenIds | None,
) -> list[Sample]:
    """Both models read each text again, cut into tokens as the tokenizer cuts it."""
    encodings = [encode_with_bos(source, text, get_max_positions(source)) for text in texts]
    rows = [encoded.ids for encoded in encodings]
    generated_positions = [
        [at for at, (start, end) in enumerate(encoded.offsets) if at > 0 and end > max(prompt, start)]
        for encoded, (prompt, _) in zip(encodings, texts.values(), strict=True)
    ]
    first_positions = [
        own[0] if own else len(row) for own, row in zip(generated_positions, rows, strict=True)
    ]
    source_logprobs = foretold(source, rows, first_positions)
    with updated(source, deltas):
        teacher_logprobs = foretold(source, rows, first_positions)
    samples = []
    for number, (text, (prompt, ended)) in enumerate(texts.items()):
        own, first = generated_positions[number], first_positions[number]
        samples.append(
            Sample(
                text=text,
                prompt=prompt,
                spans=[encodings[number].offsets[at] for at in own],
                teacher=[teacher_logprobs[number][at - first][0] for at in own],
                source=[source_logprobs[number][at - first][0] for at in own],
                ended=ended,
                shift=compute_teacher_shift(source, deltas, encodings[number], prompt, shared_tokens)
                if shared_tokens
                else None,
            )
        )
    return samples


def _uses_shift(params: SamplingParams) -> bool:
    """Is the shift to be learnt?"""
    return isinstance(params, DistillSettings) and params.shift > 0.0


def _compute_identity(source: TextModel, deltas: Mapping[Site, LowRank], params: SamplingParams) -> str:
    """What decides the samples: settings of the sampling, what ends a text, and the update. The
    bases are the job's own."""
    included_fields = {"tokens", "prompts", "temperature", "top_p", "length", "seed"}
    return compute_identity(
        settings=params.model_dump(mode="json", include=included_fields),
        deltas=hash_deltas(deltas),
        vocabulary=int(source.model.config.vocab_size),
        ends=list(source.eos),
        **({"listed": MAX_LISTED_TOKENS} if _uses_shift(params) else {}),
    )


def hash_deltas(deltas: Mapping[Site, LowRank]) -> str:
    """Of every factor's bytes."""
    sha = hashlib.sha256()
    for site in sorted(deltas):
        sha.update(str(site).encode())
        for factor in (deltas[site].A, deltas[site].B):
            sha.update(factor.detach().cpu().float().contiguous().numpy().data)
    return sha.hexdigest()
