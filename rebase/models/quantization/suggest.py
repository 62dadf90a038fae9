"""The likely name of the unquantized repo of a quantized one."""

from __future__ import annotations

import re

_SUFFIXES = re.compile(
    r"([-_.](unsloth[-_.])?(bnb[-_.])?(4|8)bit|[-_.]bnb|[-_.]gptq([-_.]int\d|[-_.]\d+bit)?|[-_.]awq([-_.]int\d)?"
    r"|[-_.]fp8([-_.](dynamic|static|block))*|[-_.]int(4|8)|[-_.]w\d+a\d+|[-_.]quantized\.?\S*|[-_.]mxfp4"
    r"|[-_.]nvfp4|[-_.]hqq\S*|[-_.]aqlm\S*|[-_.]gguf)+$",
    re.IGNORECASE,
)


def suggest_unquantized(repo_id: str) -> str:
    """A hint that names the repo, where the name of the quantized one tells."""
    owner, _, name = repo_id.rpartition("/")
    stem = _SUFFIXES.sub("", name)
    if owner and stem and stem != name and not repo_id.startswith("/"):
        return (
            f"Name the unquantized repo of the same model, probably '{owner}/{stem}' (--source on the "
            "command line)."
        )
    return "Name the unquantized repo of the same model (--source on the command line)."
