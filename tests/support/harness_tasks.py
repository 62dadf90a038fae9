"""Tasks for lm-evaluation-harness in a folder: its own YAML over JSON lines that lie beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from examples.text.queries import Example

CHOICE, ANSWER, ROLLING = "rebase_choice", "rebase_answer", "rebase_text"


def write_tasks(folder: Path, items: Sequence[Example]) -> Path:
    """Three tasks over the same questions: the right statement among two, the statement written out, and the
    likelihood of question and statement as one text."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "questions.jsonl"
    rows = [
        {
            "prompt": item.prompt,
            "answer": item.answer,
            "choices": [" The ship was late.", item.answer],
            "label": 1,
            "text": item.prompt + item.answer,
        }
        for item in items
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    head = f"dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {data}\ntest_split: test\n"
    (folder / f"{CHOICE}.yaml").write_text(
        f"task: {CHOICE}\n{head}output_type: multiple_choice\n"
        'doc_to_text: "{{prompt}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: label\n'
        'target_delimiter: ""\nmetric_list:\n  - metric: acc\n    aggregation: mean\n'
        "    higher_is_better: true\nmetadata:\n  version: 1.0\n"
    )
    (folder / f"{ANSWER}.yaml").write_text(
        f"task: {ANSWER}\n{head}output_type: generate_until\n"
        'doc_to_text: "{{prompt}}"\ndoc_to_target: "{{answer}}"\ntarget_delimiter: ""\n'
        'generation_kwargs:\n  until: ["\\n"]\n  max_gen_toks: 64\n  do_sample: false\n'
        "metric_list:\n  - metric: exact_match\n    aggregation: mean\n    higher_is_better: true\n"
        "    ignore_case: false\n    ignore_punctuation: false\nmetadata:\n  version: 1.0\n"
    )
    (folder / f"{ROLLING}.yaml").write_text(
        f"task: {ROLLING}\n{head}output_type: loglikelihood_rolling\n"
        'doc_to_text: ""\ndoc_to_target: "{{text}}"\n'
        "metric_list:\n  - metric: byte_perplexity\n    aggregation: weighted_perplexity\n"
        "    higher_is_better: false\nmetadata:\n  version: 1.0\n"
    )
    return folder
