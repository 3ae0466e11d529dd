"""What text must be, whatever it comes from."""

from stillhouse.errors import DataError


def check_characters(text: str, where: str) -> None:
    """Refuse what is no text.

    Raises:
        DataError: a NUL character, or half a surrogate pair.
    """
    if "\0" in text:
        raise DataError(f"{where} holds a NUL character: it looks like binary data. Leave it out.")
    check_whole_characters(text, where)


def check_whole_characters(text: str, where: str) -> None:
    """Refuse what cannot be UTF-8.

    Raises:
        DataError: half a surrogate pair.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where} holds half a surrogate pair, \\u{ord(text[error.start]):04x}, which is no "
            "character. Write the text again with whole characters, or leave it out."
        ) from error
