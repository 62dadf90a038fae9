"""How the adapter was prompted: its tokenizer and chat template, compared with the target's.

An adapter that answers a certain chat template needs it on the target too. The adapter's own template is
written beside the result where the target's tokenizer knows its control tokens, and its tokenizer where it
extends the target's; otherwise the difference is said.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rebase.conversion.token_map import TokenMap
from rebase.evidence.inputs import LoadedInputs
from rebase.hub.base import Hub
from rebase.methods.findings import Finding
from rebase.models.chat_template import (
    TEMPLATE_FILE,
    TOKENIZER_CONFIG_FILE,
    read_chat_template,
    read_tokenizer_config,
)
from rebase.models.model_reader import MAX_TOKENIZER_BYTES
from rebase.runtime import disk_errors

_COPIED_FILES = ("tokenizer.json", "special_tokens_map.json", "added_tokens.json")


@dataclass(frozen=True, slots=True)
class PromptFormat:
    """Findings about tokenizer and template, and the files to write beside the adapter: `copied` from the
    adapter's repo, `written` with the given text."""

    findings: tuple[Finding, ...] = ()
    copied: tuple[str, ...] = ()
    written: dict[str, str] = field(default_factory=dict)


def plan_prompt_format(inputs: LoadedInputs, hub: Hub, tokens: TokenMap | None) -> PromptFormat:
    """Compare templates and tokenizers, and decide which of the adapter's files the result needs."""
    pinned = inputs.pinned
    own = read_chat_template(hub, pinned.adapter)
    source = read_chat_template(hub, pinned.source)
    target = read_chat_template(hub, pinned.target)
    learned = own if own is not None else source
    copied: tuple[str, ...] = ()
    written: dict[str, str] = {}
    findings: list[Finding] = []
    if tokens is not None and tokens.has_own_tokens:
        files = pinned.adapter.files
        copied = tuple(name for name in _COPIED_FILES if 0 < files.get(name, 0) <= MAX_TOKENIZER_BYTES)
        if (config := read_tokenizer_config(hub, pinned.adapter)) is not None:
            written[TOKENIZER_CONFIG_FILE] = config
        text = "The adapter has a tokenizer of its own, with more tokens than the target's; it is written "
        findings.append(Finding("own_tokenizer", text + "beside the result. Use it.", "info"))
    if learned is not None and not _are_equal(learned, target):
        unknown = sorted(_find_missing_tokens(learned, tokens)) if not copied else []
        is_written = own is not None and not unknown
        if is_written and own is not None:
            written[TEMPLATE_FILE] = own
        findings.append(_describe_difference(own is not None, target, unknown, is_written=is_written))
    return PromptFormat(tuple(findings), copied, written)


def write_prompt_files(plan: PromptFormat, inputs: LoadedInputs, hub: Hub, folder: Path) -> None:
    """Write the adapter's tokenizer and template into the result's folder. Raises DiskFull."""
    with disk_errors():
        for name in plan.copied:
            (folder / name).write_bytes(hub.fetch(inputs.pinned.adapter, name).read_bytes())
        for name, text in plan.written.items():
            (folder / name).write_text(text, encoding="utf-8")


def find_environment_problems(inputs: LoadedInputs) -> Iterator[Finding]:
    """What is odd about the repos themselves, whatever the method."""
    if options := inputs.adapter.unknown_options:
        text = (
            f"adapter_config.json switches on {', '.join(options[:5])}, which the installed PEFT does not "
            "know; the weights may mean something else than was read."
        )
        yield Finding("unknown_options", text, "doubt")
    if "adapter_config.json" in inputs.pinned.target.files:
        text = (
            "The target repo holds a LoRA adapter beside its weights, and transformers loads that adapter "
            "too. The conversion is for the weights alone: use it with a copy of the repo that has no "
            "adapter_config.json."
        )
        yield Finding("target_holds_adapter", text, "doubt")


def _are_equal(first: str, second: str | None) -> bool:
    return second is not None and first.strip() == second.strip()


def _find_missing_tokens(template: str, tokens: TokenMap | None) -> Iterator[str]:
    """Control tokens in the template that the target's tokenizer does not have."""
    if tokens is None:
        return
    for piece in {**tokens.source.added, **tokens.adapter.added}:
        if piece in template and piece not in tokens.target.pieces:
            yield piece


def _describe_difference(
    is_own: bool, target: str | None, unknown: list[str], *, is_written: bool
) -> Finding:
    owner = "The adapter's own chat template" if is_own else "The source base's chat template"
    relation = "differs from the target's" if target is not None else "has no counterpart in the target"
    if is_written:
        advice = f"It is written beside the result as {TEMPLATE_FILE}: prompt the adapter with it."
    elif unknown:
        advice = (
            f"It uses {', '.join(map(repr, unknown[:5]))}, which the target's tokenizer does not have, so it "
            "cannot be used there."
        )
    else:
        advice = "The adapter learned the source's; if it was trained on conversations, compare both prompts."
    return Finding("chat_templates_differ", f"{owner} {relation}. {advice}", "doubt" if unknown else "info")
