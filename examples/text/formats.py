"""Other tasks on the same questions: the query in another notation. They make the bundled anchor pool."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from examples.text.queries import Example, Split, generate_examples

_STATEMENT: Final = re.compile(r" SELECT (\S+) FROM arrivals WHERE (.+?)( ORDER BY fee DESC)?;")


@dataclass(frozen=True, slots=True)
class Query:
    """A statement taken apart: what is asked for, and (column, comparison) of every filter."""

    column: str
    filters: tuple[tuple[str, str], ...]
    dearest_first: bool


@dataclass(frozen=True, slots=True)
class Task:
    """One notation: its name in the prompt, the kind of task that it is, and how it writes a query."""

    name: str
    domain: str
    write: Callable[[Query], str]


def parse_statement(answer: str) -> Query:
    """The parts of one of `examples.text.queries`' statements. Raises ValueError for anything else."""
    match = _STATEMENT.fullmatch(answer)
    if match is None:
        raise ValueError(f"not a statement of the harbour register: {answer!r}")
    filters = tuple((part.split()[0], part.split()[1]) for part in match[2].split(" AND "))
    return Query(match[1], filters, match[3] is not None)


def generate_task_examples(task: Task, split: Split, count: int, seed: int) -> list[Example]:
    """Questions of one side of the register with their answers in this notation."""
    return [
        Example(
            prompt=item.prompt.removesuffix("SQL:") + f"{task.name}:",
            answer=f" {task.write(parse_statement(item.answer))}",
        )
        for item in generate_examples(split, count, seed)
    ]


def _format_json(query: Query) -> str:
    where = ", ".join(f'"{column}": "{sign}"' for column, sign in query.filters)
    return f'{{"take": "{query.column}", "where": {{{where}}}}}'


def _format_yaml(query: Query) -> str:
    where = ", ".join(f"{column} {sign}" for column, sign in query.filters)
    return f"take: {query.column}; where: [{where}]; dearest: {'yes' if query.dearest_first else 'no'}"


def _format_url(query: Query) -> str:
    where = "&".join(f"{column}{sign}?" for column, sign in query.filters)
    return f"/arrivals/{query.column}?{where}" + ("&sort=-fee" if query.dearest_first else "")


def _format_graph(query: Query) -> str:
    where = ", ".join(f"{column}: ?" for column, _ in query.filters)
    return f"{{ arrivals({where}) {{ {query.column} }} }}"


def _format_lisp(query: Query) -> str:
    where = " ".join(f"({sign} {column} ?)" for column, sign in query.filters)
    return f"(take {query.column} (and {where}))"


def _format_python(query: Query) -> str:
    where = " and ".join(f"row.{column} {'==' if sign == '=' else sign} x" for column, sign in query.filters)
    return f"[row.{query.column} for row in arrivals if {where}]"


def _format_words(query: Query) -> str:
    return f"{query.column} by {' and '.join(column for column, _ in query.filters)}"


def _format_letter(query: Query) -> str:
    where = " and the ".join(column for column, _ in query.filters)
    return f"Dear clerk, look up the {query.column} for me; you know the {where}."


TASKS: Final = (
    Task("JSON", "data", _format_json),
    Task("YAML", "data", _format_yaml),
    Task("URL", "query", _format_url),
    Task("Graph", "query", _format_graph),
    Task("Lisp", "code", _format_lisp),
    Task("Python", "code", _format_python),
    Task("Words", "prose", _format_words),
    Task("Letter", "prose", _format_letter),
)
