"""CSV and TSV. A TSV file has no quotes, as those of GLUE; a CSV file quotes fields with commas,
quotes or line ends."""

import csv
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from stillhouse.data.formats import Format, Record, TableFile
from stillhouse.data.text import MAX_LINE_CHARACTERS, read_lines
from stillhouse.errors import DataError

DIALECTS: dict[str, dict[str, Any]] = {
    "CSV": {"delimiter": ",", "strict": True},
    "TSV": {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "strict": True},
}
SEPARATORS = {";": "semicolon", "\t": "tab", ",": "comma", "|": "bar"}


def read_table(file: TableFile, *, format: str) -> Iterator[Record]:
    """The rows of a table below its column names, which are its first line or `file.header`."""
    # A limit of the whole process: raised for everyone, never lowered.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_CHARACTERS))
    reader = csv.reader((line for _, line in read_lines(file.path)), **DIALECTS[format])
    names = list(file.header or ())
    start = 1
    try:
        for values in reader:
            number, start = start, reader.line_num + 1
            where = f"{file.name} row {number}"
            if not values or (len(values) == 1 < len(names) and not values[0].strip()):
                yield Record(where, number, None)
            elif not names:
                names = _column_names(values, where, format)
            elif start == number + 1 == 2 and _are_names(values, names):
                raise DataError(
                    f"{where} already names the columns: {', '.join(names)}. Set `header` to null."
                )
            elif len(values) < len(names) or (len(values) > len(names) and file.header is None):
                hint = _other_separator(_first_line(file), format) if len(values) == 1 else ""
                raise DataError(
                    f"{where} has {len(values)} fields, but the table has {len(names)} columns: "
                    f"{', '.join(names)}{hint or '. Correct the row.'}"
                )
            else:
                yield Record(where, number, dict(zip(names, values, strict=False)))
    except csv.Error as error:
        hint = _other_separator(_first_line(file), format)
        raise DataError(
            f"{file.name} row {start} cannot be read ({error}){hint or '. Correct its quotes.'}"
        ) from error


def _first_line(file: TableFile) -> str:
    """The first line that is not blank, for the advice of an error."""
    return next((line.strip() for _, line in read_lines(file.path) if line.strip()), "")


def _are_names(values: Sequence[str], names: Sequence[str]) -> bool:
    pairs = zip(values, names, strict=False)
    return all(value.strip().casefold() == name.casefold() for value, name in pairs)


def _column_names(values: list[str], where: str, format: str) -> list[str]:
    names = [name.strip() for name in values]
    if len(set(names)) < len(names):
        raise DataError(f"{where} names a column twice: {', '.join(names)}. Rename one of them.")
    if len(names) == 1 and (hint := _other_separator(names[0], format)):
        raise DataError(f"{where} names one column, {names[0]!r:.80}{hint}")
    return names


def _other_separator(line: str, format: str) -> str:
    """The end of an error, where a line has only the separators of another format; else ""."""
    own = DIALECTS[format]["delimiter"]
    found = next((mark for mark in SEPARATORS if mark in line), None)
    if own in line or found is None:
        return ""
    others = {",": "rename it to end in .csv", "\t": "rename it to end in .tsv"}
    advice = others.get(found, f"save it with {SEPARATORS[own]}s")
    return f": the file looks like {SEPARATORS[found]}-separated values, not {format}; {advice}."


FORMATS = tuple(
    Format(
        name,
        (f".{name.lower()}",),
        read_records=partial(read_table, format=name),
        documents="one document per row; the first line names the columns",
        rows=f"one example per row{quotes}",
    )
    for name, quotes in (("CSV", ""), ("TSV", "; no quoting, as in GLUE"))
)
