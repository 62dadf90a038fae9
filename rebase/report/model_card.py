"""The model card published with a converted adapter."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from rebase.hub.base import is_folder
from rebase.methods.base import TRAINED_ON_TEXT
from rebase.methods.params import parse_params
from rebase.methods.registry import get_method
from rebase.report.schema import RepoRevision, Report
from rebase.report.tables import build_evaluation_lines, build_selection_section

MAP_FILE = "layer_similarity.png"  # in the same folder as the card
_TABLE_ROWS = 40
_MARKUP_PATTERN = re.compile(r"[\\`*<>\[\]|]")
_VERDICT_WORDS = {
    "compatible": "compatible: the two bases are close enough for this method",
    "uncertain": "uncertain: the weights alone cannot tell, so measure before you use it",
    "incompatible": "incompatible: nothing suggests that this skill survives the move",
}

_MAX_LISTED = 8  # longer parameter lists are abbreviated


def render_model_card(report: Report, licenses: dict[str, str | None]) -> str:
    """Markdown with the Hub's metadata block on top. `licenses`: repo id → license named in its card."""
    return "\n".join(
        [
            *_render_metadata(report),
            *_render_summary(report),
            *_render_caveats(report),
            *_render_evaluation(report),
            *_render_selection(report),
            *_render_layers(report),
            *_render_pool(report),
            *_render_diagnostics(report),
            *_render_verification(report),
            *_render_licenses(licenses),
            "",
        ]
    )


def _render_metadata(report: Report) -> list[str]:
    # JSON strings are valid YAML, so a repo name cannot break out of its field.
    return [
        "---",
        # A folder of the machine that made the adapter means nothing to a reader, nor to the Hub.
        *(
            []
            if is_folder(report.target.repo_id)
            else [f"base_model: {json.dumps(report.target.repo_id)}", "base_model_relation: adapter"]
        ),
        "library_name: peft",
        "tags:",
        "- lora",
        "- peft",
        "- rebase",
        "---",
        "",
    ]


def _render_summary(report: Report) -> list[str]:
    name = "/".join(filter(None, (report.adapter.repo_id.split("/")[-1], report.adapter.subfolder)))
    target = report.target.repo_id.split("/")[-1]
    method = report.method_used
    parameters = ", ".join(
        f"`{key}={json.dumps(_abbreviate(value))}`" for key, value in sorted(method.items()) if key != "name"
    )
    return [
        f"# {_escape_markup(name)} on {target}",
        "",
        f"A LoRA adapter that was trained on `{_get_public_name(report.source)}` and transferred to "
        f"`{_get_public_name(report.target)}` by Rebase {report.rebase_version}, "
        f"{_describe_training(method)}.",
        "",
        f"**Verdict before the move:** {_VERDICT_WORDS[report.precheck.verdict]}.",
        "",
        *[f"- {_escape_markup(reason.message)}" for reason in report.precheck.reasons],
        "",
        "| | |",
        "|---|---|",
        f"| adapter | {_format_repo(report.adapter)} |",
        f"| source base | {_format_repo(report.source)} |",
        f"| target base | {_format_repo(report.target)} |",
        f"| method | `{method['name']}` ({parameters or 'no parameters'}) |",
        f"| written as | rank {report.output.get('rank')}, {report.output.get('dtype')} |",
        "",
    ]


def _abbreviate(value: Any) -> Any:
    """A parameter for display: long lists are replaced with their length; the report has them in full."""
    if isinstance(value, dict):
        return {key: _abbreviate(item) for key, item in value.items()}
    if isinstance(value, list | tuple) and len(value) > _MAX_LISTED:
        return f"{len(value)} entries"
    return value


def _describe_training(method: dict[str, Any]) -> str:
    params = parse_params(method)
    return TRAINED_ON_TEXT if params.refine is not None else get_method(params.name).effort


def _render_caveats(report: Report) -> list[str]:
    lines = [*report.caveats, *report.warnings]
    if not lines:
        return []
    return ["## What to know before you use it", "", *[f"- {_escape_markup(line)}" for line in lines], ""]


def _render_selection(report: Report) -> list[str]:
    """The comparison of methods, if the method was chosen by measurement."""
    if report.selection is None:
        return []
    introduction, (header, *rows), others = build_selection_section(report.selection)
    return [
        "## How the method was chosen",
        "",
        introduction,
        "",
        _format_row(header),
        _format_row(["---"] * len(header)),
        *[_format_row(map(_escape_markup, row)) for row in rows],
        "",
        *([others, ""] if others else []),
    ]


def _render_evaluation(report: Report) -> list[str]:
    """The evaluation: a summary sentence, a table of models, and the comparisons."""
    evaluation = report.evaluation
    if evaluation is None:
        return []
    example_counts = " and ".join(f"{count} {name} example(s)" for name, count in evaluation.examples.items())
    parts = [
        *([example_counts] if example_counts else []),
        *[f"task {task.name} ({task.documents} documents)" for task in evaluation.tasks],
        *([f"{evaluation.prompts.documents} prompt(s) of the refusal probe"] if evaluation.prompts else []),
    ]
    return [
        "## What it is worth",
        "",
        *[line for lines in build_evaluation_lines(evaluation) for line in lines],
        f"Means over {_escape_markup(', '.join(parts))}, with 95 % intervals of a paired bootstrap "
        f"({evaluation.settings['bootstrap']} resamples, seed {evaluation.settings['seed']}). "
        "Fewer nats are better.",
        "",
        *[f"- {_escape_markup(note)}" for note in evaluation.notes],
        *([""] if evaluation.notes else []),
    ]


def _render_pool(report: Report) -> list[str]:
    """The anchors by weight, largest first."""
    if report.pool is None:
        return []
    anchors = sorted(report.pool.anchors, key=lambda anchor: -abs(anchor.weight))
    rows = [
        _format_row(
            [
                _format_repo(anchor.target),
                _escape_markup(anchor.domain),
                *map(_format_number, (anchor.weight, anchor.leverage, anchor.loo_error)),
            ]
        )
        for anchor in anchors[:_TABLE_ROWS]
    ]
    hidden_count = len(anchors) - len(rows)
    tail = [f"{hidden_count} more anchor(s) are in `rebase_report.json`.", ""] if hidden_count > 0 else []
    return [
        "## The tasks that it was predicted from",
        "",
        "The update is a weighted sum of these adapters of the target base. The error is what the others "
        "make of an anchor that is left out, relative to its norm.",
        "",
        _format_row(["anchor", "domain", "weight", "leverage", "error when left out"]),
        _format_row(["---"] * 5),
        *rows,
        "",
        *tail,
    ]


def _render_layers(report: Report) -> list[str]:
    """The layer map as a picture and in numbers."""
    layers = report.layer_map
    if layers is None:
        return []
    mapped_similarities = [layers.similarity[source][target] for target, source in enumerate(layers.layers)]
    rows = [
        ["target layers with a similar source layer", f"{layers.coverage:.0%} (above {layers.threshold:g})"],
        [
            "similarity along the map",
            f"mean {_format_number(sum(mapped_similarities) / len(mapped_similarities))}, "
            f"lowest {_format_number(min(mapped_similarities))}",
        ],
        ["verdict before the move", report.precheck.verdict],
        [
            "token positions compared",
            f"{layers.positions} ({layers.coverage_source:.0%} of the source's tokens, "
            f"{layers.coverage_target:.0%} of the target's)",
        ],
        ["text", f"{_escape_markup(layers.corpus.name)}, {layers.corpus.documents} documents"],
    ]
    return [
        "## Which layers are alike",
        "",
        f"![Similarity of every source layer to every target layer]({MAP_FILE})",
        "",
        "Both bases read the same text, and each cell says how alike two of their layers are (debiased CKA; "
        "1: the same up to rotation and scale). The line shows the source layer that each target layer is "
        "paired with: where it runs through dark cells, expect less of the skill to arrive.",
        "",
        "| | |",
        "|---|---|",
        *map(_format_row, rows),
        "",
    ]


def _render_diagnostics(report: Report) -> list[str]:
    names = sorted({name for row in report.sites for name in row.measurements})
    if not names:
        return []
    rows = [
        _format_row(
            [row.target, *[_format_number(row.measurements.get(name)) for name in names], " ".join(row.flags)]
        )
        for row in report.sites[:_TABLE_ROWS]
    ]
    hidden_count = len(report.sites) - len(rows)
    tail = [f"{hidden_count} more site(s) are in `rebase_report.json`.", ""] if hidden_count > 0 else []
    header = [_format_row(["site", *names, "flags"]), _format_row(["---"] * (len(names) + 2))]
    return ["## Diagnostics by site", "", *header, *rows, "", *tail]


def _render_verification(report: Report) -> list[str]:
    check = report.verification
    if check is None:
        return []
    return [
        "## Checks before publishing",
        "",
        f"- PEFT places all {check.tensors} tensors on the target.",
        f"- A forward pass ({check.forward_scope}) changes the logits by {check.logit_change:.3g} "
        f"of their norm (mean KL {check.mean_kl:.3g} nats).",
        "",
    ]


def _render_licenses(licenses: dict[str, str | None]) -> list[str]:
    lines = [
        f"- `{_get_public_id(repo)}`: {_escape_markup(license_id or 'no licence named in its card')}"
        for repo, license_id in sorted(licenses.items())
    ]
    return [
        "## Licences",
        "",
        "This adapter derives from the repos below. Their licences apply to it together.",
        "",
        *lines,
    ]


def _get_public_name(repo: RepoRevision) -> str:
    """The repo id; of a local folder only its last part, because a card is published."""
    return _get_public_id(repo.repo_id)


def _get_public_id(repo_id: str) -> str:
    return repo_id.rpartition("/")[2] if is_folder(repo_id) else repo_id


def _format_repo(repo: RepoRevision) -> str:
    """A repo at its commit; for a folder, the hash of its content."""
    if is_folder(repo.repo_id):
        return f"local folder `{_get_public_name(repo)}` (content `{repo.sha}`)"
    # A code span has no escapes.
    subfolder = f":{_MARKUP_PATTERN.sub('_', repo.subfolder)}" if repo.subfolder else ""
    return f"`{repo.repo_id}@{repo.sha}{subfolder}`"


def _escape_markup(text: str) -> str:
    """One line with Markdown escaped: sentences may quote untrusted files."""
    return _MARKUP_PATTERN.sub(r"\\\g<0>", " ".join(text.split()))


def _format_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _format_number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
