"""One conversion, from names to a verified folder. The whole journey reads top to bottom in `run`.

    resolve → read → pre-check → carry, site by site → build → verify → evaluate → a folder ready to publish

Nothing here knows about jobs, SQL or Celery: `workers.runner` does. `rebase transfer` calls `run` directly.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rebase.errors import Rejected
from rebase.schemas.anchor_pools import NO_ANCHOR_POOLS, AnchorPools
from rebase.schemas.conversions import ConversionRequest, check_precheck_request
from rebase.schemas.states import Phase
from transfer.adapter.write import BuiltAdapter, build_adapter
from workers.activations.gather import stored_bases
from workers.evaluation.prepare import Prepared, prepare
from workers.evaluation.run import evaluated, refuse_worse
from workers.hub.port import Published, is_folder
from workers.move import Bench, Move, begun, moved
from workers.reading import licence_of, read, resolve
from workers.report import Report
from workers.resolve import OutputPlace, output_name, output_place
from workers.selection.rows import Selection
from workers.selection.run import best_of
from workers.telling import opening, with_sites
from workers.token_rows import TokenPlan, carry_tokens, plan_tokens
from workers.tools import Tools
from workers.verify.check import verify
from workers.wants import compared, measurement_decides
from workers.watch import Resolved, Watch
from workers.writing import write_card_and_report, write_tensors

Kind = Literal["convert", "precheck"]


@dataclass(frozen=True, slots=True)
class Conversion:
    """The end of a run: the evidence, and for a conversion the folder and where it belongs."""

    report: Report
    folder: Path | None
    place: OutputPlace | None


def run(
    request: ConversionRequest,
    kind: Kind,
    tools: Tools,
    watch: Watch,
    folder: Path,
    *,
    marker: str | None,
    pools: AnchorPools = NO_ANCHOR_POOLS,
    corpus_file: Path | None = None,
) -> Conversion | Published:
    """Convert (or only pre-check) and leave a verified adapter in `folder`, which must not exist yet.

    `marker` is what the publishing commit's message will carry (None: the result is not pushed). A commit
    that carries it already ends the run at once, so that no job commits twice. Raises errors of
    `rebase.errors` and `rebase.errors`; `Rejected` when the verdict ends the job.
    """
    if kind == "precheck":
        check_precheck_request(request)
    pinned, adapter_config, adapter_reader = resolve(request, tools.hub, watch)
    place = None
    if marker is not None and kind == "convert":
        repo_id = output_name(tools.hub, request)
        # In this order: a commit that an earlier attempt makes after the search then finds the parent moved.
        head = tools.hub.head(repo_id)
        published = tools.hub.find_commit(repo_id, marker)
        if published is not None:
            return published
        place = output_place(tools.hub, request, pinned, repo_id, head)
    watch.resolved(
        Resolved(
            adapter_sha=pinned.adapter.sha,
            source_repo=pinned.source.repo_id,
            source_sha=pinned.source.sha,
            target_sha=pinned.target.sha,
            output_repo=place.repo_id if place else None,
        )
    )
    opened = read(request, tools.hub, pinned, adapter_config, adapter_reader, watch)
    bench = Bench(opened, stored_bases(opened, tools), tools, pools, corpus_file, watch)
    evaluation = prepare(request, opened, bench.bases, tools, watch)
    move = begun(request, bench)
    tokens, report = _opened(request, move, tools)
    watch.diagnosed(report)
    if kind == "precheck":
        return Conversion(report, None, None)
    if not measurement_decides(request):
        _refuse_incompatible(request, report)
    if evaluation is not None and compared(request):
        move, found, selection = best_of(request, bench, evaluation, move, report)
        tokens, report = _opened(request, move, tools, selection)
        watch.diagnosed(report)
    else:
        found = moved(move, bench)
    opened = move.opened
    watch.step(Phase.TRANSFERRING)
    built = build_adapter(
        opened.target,
        found.deltas,
        dtype=request.output.dtype,
        max_rank=request.output.max_rank,
        base_model=pinned.target.repo_id,
        revision=None if is_folder(pinned.target.repo_id) else pinned.target.sha,
    )
    carried = carry_tokens(tokens, opened, built, request.output.dtype)
    built = carried.built
    report = carried.summed(with_sites(carried.told(report), found, built, request))
    watch.diagnosed(report)

    write_tensors(folder, built)
    watch.step(Phase.VERIFYING)
    report = report.model_copy(
        update={
            "verification": verify(
                opened, built, folder, found.deltas, tools.device, trained=found.learnt is not None
            )
        }
    )
    if evaluation is not None:
        report = _evaluated(evaluation, report, built, watch)
    licences = {
        repo.repo_id: licence_of(tools.hub, repo) for repo in (pinned.adapter, pinned.source, pinned.target)
    }
    write_card_and_report(folder, report, licences)
    watch.diagnosed(report)
    return Conversion(report, folder, place)


def _opened(
    request: ConversionRequest, move: Move, tools: Tools, selection: Selection | None = None
) -> tuple[TokenPlan, Report]:
    """What is to become of trained token rows, and the report before anything is carried or built."""
    name = move.judged.params.name
    tokens = plan_tokens(move.opened, tools.hub, name, wanted=request.output.token_rows)
    return tokens, tokens.told(opening(request, move, selection))


def _refuse_incompatible(request: ConversionRequest, report: Report) -> None:
    """Raises Rejected for that verdict, unless the request wants to go on."""
    if report.precheck.verdict != "incompatible" or request.precheck.on_incompatible != "reject":
        return
    raise Rejected(
        "The pre-check found this pair incompatible. "
        + " ".join(reason.message for reason in report.precheck.reasons if reason.weight == "blocking"),
        hint='Retrain on the new base, or set precheck.on_incompatible to "warn" to convert anyway.',
    )


def _evaluated(evaluation: Prepared, report: Report, built: BuiltAdapter, watch: Watch) -> Report:
    """What the adapter is worth as it was written. Raises WorseThanTarget, after telling the watch why."""
    watch.step(Phase.EVALUATING)
    report = evaluated(evaluation, built, report)
    watch.diagnosed(report)
    refuse_worse(evaluation.spec, report)
    return report
