"""`rebase transfer`: the whole conversion in this process; no service, no queue, no database."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rebase.cli import exit_on_interrupt, options
from rebase.cli.exit_codes import Exit
from rebase.cli.output import Output
from rebase.cli.progress import PhaseProgress
from rebase.cli.request import build_request
from rebase.cli.tables import (
    build_diagnostics_table,
    build_evaluation_tables,
    build_selection_tables,
    format_layers,
    format_verdict,
)
from rebase.conversion.pool_files import read_local_pool
from rebase.errors import CommandFailed, HubError, MalformedAdapter, Rejected, RequestInvalid
from rebase.hub.aliases import FolderAliases, find_folder
from rebase.schemas.anchor_pools import NO_ANCHOR_POOLS, AnchorPools
from rebase.schemas.conversions import ConversionRequest
from rebase.schemas.validation import read_evaluation
from rebase.settings import Settings

if TYPE_CHECKING:
    from rebase.report.schema import Report

HubFolderOption = Annotated[
    Path | None,
    typer.Option(
        "--hub",
        metavar="DIR",
        help="Read repos from this local hub folder; default: REBASE_HUB_DIR, else the Hub.",
    ),
]


def command(
    adapter: Annotated[
        str,
        typer.Argument(
            metavar="ADAPTER", help="A folder, owner/name[@revision][:subfolder], or its address on the Hub."
        ),
    ],
    target: options.Target,
    out_dir: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder for the new adapter; must be new or empty.")
    ],
    source: options.Source = None,
    method: options.Method = None,
    settings: options.Settings = None,
    evaluate: options.EvaluateFile = None,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report", metavar="FILE.json", help="Also write the report here, even if the pair is refused."
        ),
    ] = None,
    pool: options.PoolFile = None,
    corpus: options.CorpusFile = None,
    hub: HubFolderOption = None,
    as_json: options.AsJson = False,
) -> int:
    """Convert an adapter right here: adapter and bases from folders or Hub repos, a PEFT folder out."""
    out = Output(as_json=as_json)
    request, folders, pools = build_local_request(adapter, target, source, method, settings, pool, evaluate)
    if request.output.repo_id is not None:
        raise RequestInvalid(
            "transfer does not publish: leave out output.repo_id.", pointer="/output/repo_id"
        )
    evidence = run_locally(
        request, "convert", folders, hub, out, pools=pools, corpus=corpus, out_dir=out_dir, report_file=report
    )
    out.write_json(
        {
            "out": str(out_dir),
            "verdict": evidence.precheck.verdict,
            "report": evidence.model_dump(mode="json"),
        }
    )
    out.show(
        *format_verdict(evidence.precheck.verdict, [reason.message for reason in evidence.precheck.reasons])
    )
    document = evidence.model_dump(mode="json")
    out.show(*format_layers(document["layer_map"]), build_diagnostics_table(document))
    out.show(*build_selection_tables(document["selection"]), *build_evaluation_tables(document["evaluation"]))
    out.show(*[f"- {line}" for line in (*evidence.caveats, *evidence.warnings)])
    out.show(f"adapter   {out_dir}")
    return Exit.DONE


def build_local_request(
    adapter: str,
    target: str,
    source: str | None,
    method: str | None,
    settings: list[str] | None,
    pool: str | None,
    evaluate: Path | None = None,
) -> tuple[ConversionRequest, dict[str, str], AnchorPools]:
    """The request, with the folders among its repos and anchors under aliases: (request, alias → folder,
    what `pool` names)."""
    aliases = FolderAliases()
    if source is None and (folder := find_folder(adapter)) is not None:
        with exit_on_interrupt():
            from rebase.conversion.api import find_local_base

        source = find_local_base(folder)
    request = build_request(
        adapter=aliases.to_reference(adapter),
        target=aliases.to_reference(target),
        source=aliases.to_reference(source) if source is not None else None,
        method=method,
        settings=settings or (),
        evaluate=_read_evaluation_file(evaluate, aliases) if evaluate is not None else None,
    )
    if request.callback is not None:
        raise RequestInvalid(
            "`rebase transfer` cannot send callbacks: no service runs after the command ends.",
            hint="Leave out 'callback', or use a service: rebase convert.",
            pointer="/callback",
        )
    pools = read_local_pool(pool, request, aliases) if pool is not None else NO_ANCHOR_POOLS
    return request, aliases.folders, pools


def _read_evaluation_file(file: Path, aliases: FolderAliases) -> dict[str, Any]:
    """The file's request; the folder of an oracle goes under an alias, as every folder does."""
    evaluation = read_evaluation(file)
    oracle = evaluation.get("oracle")
    if (
        isinstance(oracle, dict)
        and isinstance(repo_id := oracle.get("repo_id"), str)
        and find_folder(repo_id) is not None
    ):
        evaluation["oracle"] = {**oracle, "repo_id": aliases.to_reference(repo_id)}
    return evaluation


def run_locally(
    request: ConversionRequest,
    kind: Any,
    folders: dict[str, str],
    hub: Path | None,
    out: Output,
    *,
    pools: AnchorPools = NO_ANCHOR_POOLS,
    corpus: Path | None = None,
    out_dir: Path | None = None,
    report_file: Path | None = None,
) -> Report:
    """Run with progress on stderr; whatever libraries print stays off stdout when one document was
    promised."""
    with exit_on_interrupt():
        from rebase.cli.progress import CliProgress
        from rebase.conversion.api import require_empty_folder
        from rebase.conversion.api import run_locally as run_plan
        from rebase.conversion.plan import plan_conversion

    if hub is not None and not hub.is_dir():
        raise CommandFailed(f"--hub {hub} is not a folder.")
    if report_file is not None and (report_file.is_dir() or not report_file.absolute().parent.is_dir()):
        raise CommandFailed(f"--report {report_file} cannot be written: its folder must exist.")
    settings = Settings(hub_dir=hub) if hub is not None else Settings()
    if out_dir is not None:
        require_empty_folder(out_dir)
    quiet: AbstractContextManager[None] = out.redirect_stdout()
    with quiet, PhaseProgress(out.err) as progress:
        reporter = CliProgress(progress)
        try:
            plan = plan_conversion(request, kind, corpus_file=corpus)
            report = run_plan(plan, settings, folders, reporter, out_dir, pools).report
        except (HubError, MalformedAdapter) as exc:
            if exc.pointer == "/source" and request.source is None:
                exc.hint = (
                    "Pass the base that the adapter was trained on: --source DIR, or --source owner/name."
                )
            raise
        except Rejected:
            if reporter.report is not None:
                precheck = reporter.report.precheck
                out.show(*format_verdict(precheck.verdict, [reason.message for reason in precheck.reasons]))
                document = reporter.report.model_dump(mode="json")
                out.show(
                    *build_selection_tables(document["selection"]),
                    *build_evaluation_tables(document["evaluation"]),
                )
            raise
        else:
            progress.finish()
            return report
        finally:
            if report_file is not None and reporter.report is not None:
                report_file.write_text(reporter.report.to_json(), encoding="utf-8")
