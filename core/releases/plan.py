"""From a subscription and a release to the requests of its jobs."""

from __future__ import annotations

from typing import Literal

from core.releases.spec import SubscriptionRequest
from core.repos import RepoRef
from core.requests import ConversionRequest, OutputSpec, check_precheck_request, check_selection_examples

Stage = Literal["precheck", "convert"]


def build_conversion_request(
    spec: SubscriptionRequest, adapter: RepoRef, target: RepoRef, stage: Stage, output: str | None
) -> ConversionRequest:
    """One adapter's request; `output` is the filled-in template. Raises ValueError when source and target are
    one."""
    output_fields = {**spec.output.model_dump(), "repo_id": output if stage == "convert" else None}
    return ConversionRequest(
        adapter=adapter,
        source=spec.source,
        target=target,
        method=spec.method,
        output=OutputSpec.model_validate(output_fields),
        precheck=spec.precheck,
        corpus=spec.corpus,
        evaluate=spec.evaluate if stage == "convert" else None,
        callback=spec.callback if stage == "convert" else None,
    )


def check_subscription_request(spec: SubscriptionRequest) -> None:
    """What every job of the subscription would be refused for is refused now. Raises RequestInvalid."""
    example = RepoRef(repo_id="example/base", revision="0" * 40)
    stages: tuple[Stage, ...] = ("precheck", "convert") if spec.dry_run else ("convert",)
    for stage in stages:
        request = build_conversion_request(spec, spec.adapters[0], example, stage, "example/output")
        check_selection_examples(request)
        if stage == "precheck":
            check_precheck_request(request)
