"""`rebase transfer`: the whole conversion in this process; no service, no queue, no database."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rebase.cli import leaving_on_ctrl_c, options
from rebase.cli.evaluation import evaluation_tables
from rebase.cli.exits import CommandFailed, Exit
from rebase.cli.output import Output
from rebase.cli.progress import PhaseProgress
from rebase.cli.request import build_request
from rebase.cli.selection import selection_tables
from rebase.cli.tables import diagnostics_table, layer_lines, verdict_lines
from rebase.errors import HubError, MalformedAdapter, Rejected, RequestInvalid
from rebase.evaluation_files import read_evaluation
from rebase.folders import Aliases
from rebase.pool_files import local_pool
from rebase.schemas.anchor_pools import NO_ANCHOR_POOLS, AnchorPools
from rebase.schemas.conversions import ConversionRequest
from rebase.settings import Settings

if TYPE_CHECKING:
    from rebase.report.schema import Report

LocalHub = Annotated[
    Path | None,
    typer.Option(
        "--hub",
        metavar="DIR",
        help="Read repos from this local hub folder; default: REBASE_HUB_DIR, else the Hub.",
    ),
]


def command(
    adapter: Annotated[
        str, typer.Argument(metavar="ADAPTER", help="A folder, owner/name or owner/name@revision.")
    ],
    target: options.Target,
    out_dir: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="The new adapter; must be new or empty.")
    ],
    source: options.Source = None,
    method: options.Method = None,
    settings: options.Settings = None,
    evaluate: options.EvaluateFile = None,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report", metavar="FILE.json", help="Also write the evidence here, even of a refusal."
        ),
    ] = None,
    pool: options.PoolFile = None,
    corpus: options.CorpusFile = None,
    hub: LocalHub = None,
    as_json: options.AsJson = False,
) -> int:
    """Convert an adapter right here: adapter and bases from folders or Hub repos, a PEFT folder out."""
    out = Output(as_json=as_json)
    request, folders, pools = local_request(adapter, target, source, method, settings, pool, evaluate)
    if request.output.repo_id is not None:
        raise RequestInvalid(
            "transfer publishes nothing: leave output.repo_id out.", pointer="/output/repo_id"
        )
    evidence = run_locally(
        request, "convert", folders, hub, out, pools=pools, corpus=corpus, out_dir=out_dir, report_file=report
    )
    out.document(
        {
            "out": str(out_dir),
            "verdict": evidence.precheck.verdict,
            "report": evidence.model_dump(mode="json"),
        }
    )
    out.show(
        *verdict_lines(evidence.precheck.verdict, [reason.message for reason in evidence.precheck.reasons])
    )
    shown = evidence.model_dump(mode="json")
    out.show(*layer_lines(shown["layer_map"]), diagnostics_table(shown))
    out.show(*selection_tables(shown["selection"]), *evaluation_tables(shown["evaluation"]))
    out.show(*[f"- {line}" for line in (*evidence.caveats, *evidence.warnings)])
    out.show(f"adapter   {out_dir}")
    return Exit.DONE


def local_request(
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
    aliases = Aliases()
    if source is None and Path(adapter).is_dir():
        with leaving_on_ctrl_c():
            from rebase.local import named_base

        source = named_base(adapter)
    request = build_request(
        adapter=aliases.reference(adapter),
        target=aliases.reference(target),
        source=aliases.reference(source) if source is not None else None,
        method=method,
        settings=settings or (),
        evaluate=_evaluation(evaluate, aliases) if evaluate is not None else None,
    )
    if request.callback is not None:
        raise RequestInvalid(
            "Nothing here outlives the command, so nobody would send a callback.",
            hint="Leave 'callback' out, or ask a service: rebase convert.",
            pointer="/callback",
        )
    pools = local_pool(pool, request, aliases) if pool is not None else NO_ANCHOR_POOLS
    return request, aliases.folders, pools


def _evaluation(file: Path, aliases: Aliases) -> dict[str, Any]:
    """The file's request; the folder of an oracle goes under an alias, as every folder does."""
    found = read_evaluation(file)
    oracle = found.get("oracle")
    if isinstance(oracle, dict) and isinstance(named := oracle.get("repo_id"), str) and Path(named).is_dir():
        found["oracle"] = {**oracle, "repo_id": aliases.reference(named)}
    return found


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
    with leaving_on_ctrl_c():
        from rebase import local

    if hub is not None and not hub.is_dir():
        raise CommandFailed(f"--hub {hub} is not a folder.")
    if report_file is not None and (report_file.is_dir() or not report_file.absolute().parent.is_dir()):
        raise CommandFailed(f"--report {report_file} cannot be written: its folder must exist.")
    settings = Settings(hub_dir=hub) if hub is not None else Settings()
    if out_dir is not None:
        local.check_out(out_dir)
    quiet: AbstractContextManager[None] = out.only_document()
    with quiet, PhaseProgress(out.err) as progress:
        watch = local.Shown(progress)
        try:
            report = local.run_here(request, kind, settings, folders, watch, out_dir, pools, corpus)
        except (HubError, MalformedAdapter) as exc:
            if exc.pointer == "/source" and request.source is None:
                exc.hint = (
                    "Name the base that the adapter was trained on: --source DIR, or --source owner/name."
                )
            raise
        except Rejected:
            if watch.report is not None:
                found = watch.report.precheck
                out.show(*verdict_lines(found.verdict, [reason.message for reason in found.reasons]))
                told = watch.report.model_dump(mode="json")
                out.show(*selection_tables(told["selection"]), *evaluation_tables(told["evaluation"]))
            raise
        else:
            progress.finish()
            return report
        finally:
            if report_file is not None and watch.report is not None:
                report_file.write_text(watch.report.to_json(), encoding="utf-8")
