"""One conversion, from repo names to a verified folder. `run_conversion` reads top to bottom.

    plan → resolve → load → pre-check → transfer, site by site → build → verify → evaluate → report

Nothing here knows about jobs, SQL or Celery: `workers.runner` does. `rebase.convert` calls it directly.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rebase.conversion.collect_activations import make_base_pair
from rebase.conversion.extra_parts import ExtraPartsPlan, plan_extra_parts, transfer_extra_parts
from rebase.conversion.load import load_inputs
from rebase.conversion.lost_effect import find_losses, measure_lost_effect
from rebase.conversion.method_search import search_methods
from rebase.conversion.output_folder import write_card_and_report, write_tensors
from rebase.conversion.plan import ConversionPlan
from rebase.conversion.prompt_format import (
    PromptFormat,
    find_environment_problems,
    plan_prompt_format,
    write_prompt_files,
)
from rebase.conversion.report_builder import (
    add_losses,
    add_site_results,
    add_transferred_parts,
    build_initial_report,
)
from rebase.conversion.resolve import OutputTarget, check_output, choose_output_repo, resolve_repos
from rebase.conversion.token_map import TokenMap, read_token_map
from rebase.conversion.transfer import ConversionContext, MethodRun, prepare_method, run_method
from rebase.conversion.verify import verify
from rebase.errors import Rejected
from rebase.evaluation.evaluate import evaluate_adapter, reject_worse
from rebase.evaluation.prepare import PreparedEvaluation, prepare_evaluation
from rebase.hub.base import Published, is_folder
from rebase.hub.repo_metadata import read_license
from rebase.lora.extra_writer import set_task
from rebase.lora.writer import BuiltAdapter, build_adapter
from rebase.report.progress import ProgressReporter, ResolvedRevisions
from rebase.report.schema import Report
from rebase.report.selection import Selection
from rebase.runtime import Runtime
from rebase.schemas.anchor_pools import NO_ANCHOR_POOLS, AnchorPools
from rebase.schemas.states import Phase


@dataclass(frozen=True, slots=True)
class ConversionResult:
    """A finished run: the report with all its evidence, and for a conversion the folder of the new adapter
    and where it is to be published."""

    report: Report
    folder: Path | None
    output: OutputTarget | None = None

    @property
    def verdict(self) -> Literal["compatible", "uncertain", "incompatible"]:
        """What the pre-check predicts."""
        return self.report.precheck.verdict

    @property
    def reasons(self) -> list[str]:
        """The findings behind the verdict, a sentence each."""
        return [finding.message for finding in self.report.precheck.reasons]

    @property
    def method(self) -> str:
        """The method that was used; for `auto`, the one that it chose."""
        return str(self.report.method_used["name"])


def run_conversion(
    plan: ConversionPlan,
    runtime: Runtime,
    progress: ProgressReporter,
    folder: Path,
    *,
    marker: str | None,
    pools: AnchorPools = NO_ANCHOR_POOLS,
) -> ConversionResult | Published:
    """Convert (or only pre-check) and leave a verified adapter in `folder`, which must not exist yet.

    `marker` is what the publishing commit's message will carry (None: the result is not pushed). A commit
    that carries it already ends the run at once, so that no job commits twice. Raises errors of
    `rebase.errors`; `Rejected` when the verdict ends the job.
    """
    pinned, adapter_config, adapter_reader = resolve_repos(plan, runtime.hub, progress)
    output = None
    if marker is not None and plan.kind == "convert":
        repo_id = choose_output_repo(runtime.hub, plan.adapter, plan.target, plan.output)
        # Read `latest` before the search: a commit made in between then fails the parent check.
        latest = runtime.hub.get_latest(repo_id)
        published = runtime.hub.find_commit(repo_id, marker)
        if published is not None:
            return published
        output = check_output(runtime.hub, plan.output, pinned, repo_id, latest)
    progress.report_resolved(
        ResolvedRevisions(
            adapter_sha=pinned.adapter.sha,
            source_repo=pinned.source.repo_id,
            source_sha=pinned.source.sha,
            target_sha=pinned.target.sha,
            output_repo=output.repo_id if output else None,
        )
    )
    inputs = load_inputs(plan, runtime.hub, pinned, adapter_config, adapter_reader, progress)
    context = ConversionContext(inputs, make_base_pair(inputs, runtime), runtime, progress, pools)
    evaluation = prepare_evaluation(plan.evaluation, inputs, context.models, runtime, progress)
    method_run = prepare_method(plan, context)
    token_map = read_token_map(inputs, runtime.hub)
    prompt_format = plan_prompt_format(inputs, runtime.hub, token_map)
    parts, report = _plan_parts_and_report(plan, method_run, runtime, token_map, prompt_format)
    progress.report_evidence(report)
    if plan.kind == "precheck":
        return ConversionResult(report, None, None)
    if not plan.selects_by_evaluation:
        _reject_incompatible(plan, report)
    if evaluation is not None and plan.candidates():
        method_run, result, selection = search_methods(plan, context, evaluation, method_run, report)
        parts, report = _plan_parts_and_report(plan, method_run, runtime, token_map, prompt_format, selection)
        progress.report_evidence(report)
    else:
        result = run_method(method_run, context)
    inputs = method_run.inputs
    progress.update(Phase.TRANSFERRING)
    built = build_adapter(
        inputs.target,
        result.deltas,
        dtype=plan.output.dtype,
        max_rank=plan.output.max_rank,
        base_model=pinned.target.public.repo_id,
        revision=None if is_folder(pinned.target.public.repo_id) else pinned.target.public.sha,
    )
    transferred = transfer_extra_parts(parts, inputs, built, plan.output)
    built = set_task(
        transferred.built,
        inputs.adapter.task_type,
        headless_prefix=f"{inputs.target.architecture.root.partition('.')[0]}."
        if inputs.adapter.is_headless
        else None,
    )
    report = add_transferred_parts(add_site_results(report, result, built, plan.output), transferred)
    progress.report_evidence(report)

    write_tensors(folder, built)
    write_prompt_files(prompt_format, inputs, runtime.hub, folder)
    progress.update(Phase.VERIFYING)
    report = report.model_copy(
        update={
            "verification": verify(
                inputs, built, folder, result.deltas, runtime.device, trained=result.training is not None
            )
        }
    )
    if evaluation is not None:
        report = _evaluate_written(evaluation, report, built, progress)
    licenses = {
        repo.public.repo_id: read_license(runtime.hub, repo)
        for repo in (pinned.adapter, pinned.source, pinned.target)
    }
    write_card_and_report(folder, report, licenses)
    progress.report_evidence(report)
    return ConversionResult(report, folder, output)


def _plan_parts_and_report(
    plan: ConversionPlan,
    method_run: MethodRun,
    runtime: Runtime,
    token_map: TokenMap | None,
    prompt_format: PromptFormat,
    selection: Selection | None = None,
) -> tuple[ExtraPartsPlan, Report]:
    """What becomes of everything that was trained besides the sites, and the report before anything is
    transferred or built. What is lost may lower the verdict."""
    inputs, name = method_run.inputs, method_run.precheck_outcome.params.name
    parts = plan_extra_parts(inputs, token_map, name, enabled=plan.output.token_rows)
    lost = measure_lost_effect(inputs, parts, runtime.device)
    report = build_initial_report(plan, method_run, selection)
    findings = (
        *find_environment_problems(inputs),
        *prompt_format.findings,
        *find_losses(parts, lost, inputs),
    )
    return parts, add_losses(report, parts, lost, findings)


def _reject_incompatible(plan: ConversionPlan, report: Report) -> None:
    """Raises Rejected for that verdict, unless the request wants to go on."""
    if report.precheck.verdict != "incompatible" or not plan.rejects_incompatible:
        return
    raise Rejected(
        "The pre-check found this pair incompatible. "
        + " ".join(reason.message for reason in report.precheck.reasons if reason.weight == "blocking"),
        hint='Retrain on the new base, or set precheck.on_incompatible to "warn" to convert anyway.',
    )


def _evaluate_written(
    evaluation: PreparedEvaluation, report: Report, built: BuiltAdapter, progress: ProgressReporter
) -> Report:
    """What the adapter is worth as it was written. Raises WorseThanTarget, after telling the watch why."""
    progress.update(Phase.EVALUATING)
    report = evaluate_adapter(evaluation, built, report)
    progress.report_evidence(report)
    reject_worse(evaluation.spec, report)
    return report
