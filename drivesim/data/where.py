"""Conditions on the columns of a table, such as `night and cars > 5 and not split == 'val'`: what may stand in one.

Comparisons of a column with a number or a text, true-or-false columns and FLAGS by themselves, and, or, not, brackets.
Whatever else is Python (names that are no column, attributes, calls, arithmetic) is refused before pandas sees it.
"""

import ast
import difflib
from itertools import pairwise

import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from drivesim.data.schema import WEATHERS
from drivesim.errors import UserError

NIGHT = 0.5  # from here on it counts as night; dusk lies between 0 and 1
ALIASES = {"cars": "crowdedness", "vehicles": "crowdedness", "speed": "speed_mps"}  # what people call a column
FLAGS = {"night": f"night >= {NIGHT}", "day": f"night < {NIGHT}"} | {name: f"weather == '{name}'" for name in WEATHERS}
COMPARISONS = (ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq)
KINDS = {bool: "true or false", float: "a number", str: "text in quotes"}
EXAMPLE = "night and cars > 5 and split == 'val'"


def select(table: pd.DataFrame, where: str) -> pd.DataFrame:
    """The rows for which `where` holds. An unknown number (NaN) satisfies no comparison but !=.

    raises  UserError for an unknown column, wrong syntax, or anything but comparisons, flags, and, or, not
    """
    kinds = {str(name): _kind(column) for name, column in table.items()}
    if table.index.name is not None:
        kinds = {str(table.index.name): _kind(table.index)} | kinds
    try:
        tree = _checked(ast.parse(where.strip(), mode="eval").body, kinds)
        # What was checked is what runs, not the text: pandas gives @ and backticks a meaning of their own.
        return table.query(ast.unparse(tree), engine="python")
    except (SyntaxError, ValueError) as error:
        found = f"where={where} cannot be read ({getattr(error, 'msg', None) or error})"
        raise UserError(f"{found}; write for example {EXAMPLE}{_columns(kinds)}") from error
    except (RecursionError, MemoryError) as error:
        raise UserError(f"where={where[:40]}... is nested too deeply; use fewer brackets") from error


def _kind(column: pd.Series | pd.Index) -> type:
    return bool if is_bool_dtype(column) else float if is_numeric_dtype(column) else str


def _checked(node: ast.expr, kinds: dict[str, type]) -> ast.expr:
    """The condition with aliases and flags written out, if it is one that may be asked."""
    match node:
        case ast.BoolOp(op=op, values=parts):
            return ast.BoolOp(op, [_checked(part, kinds) for part in parts])
        case ast.UnaryOp(op=ast.Not() as op, operand=part):
            return ast.UnaryOp(op, _checked(part, kinds))
        case ast.Compare(left=left, ops=ops, comparators=others) if all(isinstance(op, COMPARISONS) for op in ops):
            sides = [_column(side, kinds) for side in (left, *others)]
            for pair in pairwise(sides):
                _check_pair(pair, kinds)
            return ast.Compare(sides[0], ops, sides[1:])
        case ast.Name(id=name):
            return _flag(name, kinds)
        case _:
            raise UserError(
                f"where: {ast.unparse(node)} is no comparison of a column; write for example {EXAMPLE}{_columns(kinds)}"
            )


def _column(side: ast.expr, kinds: dict[str, type]) -> ast.expr:
    """One side of a comparison, a column under its own name."""
    if isinstance(side, ast.Name) and side.id not in kinds and ALIASES.get(side.id) in kinds:
        return ast.Name(ALIASES[side.id])
    return side


def _flag(name: str, kinds: dict[str, type]) -> ast.expr:
    """What stands without a comparison: a true-or-false column, or a flag about a column that is there."""
    if kinds.get(name) is bool:
        return ast.Name(name)
    if name in FLAGS and FLAGS[name].split()[0] in kinds:
        return ast.parse(FLAGS[name], mode="eval").body
    column = ALIASES.get(name, name)
    _column_kind(column if column in kinds else name, kinds)
    raise UserError(f"where: {name} by itself says nothing; compare it, as in {EXAMPLE}")


def _check_pair(pair: tuple[ast.expr, ast.expr], kinds: dict[str, type]) -> None:
    names = [_column_kind(side.id, kinds) for side in pair if isinstance(side, ast.Name)]
    values = [kind for side in pair if (kind := _value_kind(side)) is not None]
    found = f"where: found {' and '.join(ast.unparse(side) for side in pair)} compared"
    if len(names) != 1 or len(values) != 1:
        raise UserError(f"{found}; expected a column and a number or text in quotes{_columns(kinds)}")
    if names != values:
        raise UserError(f"{found}; the column holds {KINDS[names[0]]}")


def _column_kind(name: str, kinds: dict[str, type]) -> type:
    if name not in kinds:
        close = difflib.get_close_matches(name, [*kinds, *ALIASES, *FLAGS], n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UserError(f"where: unknown column {name!r}{hint}{_columns(kinds)}")
    return kinds[name]


def _value_kind(node: ast.expr) -> type | None:
    """float, str or bool for a literal, None for anything else."""
    match node:
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=ast.Constant(value=int() | float() as value)):
            return None if isinstance(value, bool) else float
        case ast.Constant(value=bool()):
            return bool
        case ast.Constant(value=int() | float()):
            return float
        case ast.Constant(value=str()):
            return str
    return None


def _columns(kinds: dict[str, type]) -> str:
    return f"; columns: {', '.join(kinds)}; by itself: {', '.join(FLAGS)}; text needs quotes"
