"""Commands that make a corpus, before a recipe reads it."""

from pathlib import Path
from typing import Annotated

import typer

from stillhouse.cli.options import AsJson, print_json


def links(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="Dumps of submissions: JSON lines, such as .zst."),
    ],
    output: Annotated[Path, typer.Option(help="The text file to write, one address per line.")],
    min_score: Annotated[
        int, typer.Option(help="Lowest score of a post; by default WebText's.")
    ] = 3,
    block: Annotated[
        list[str] | None,
        typer.Option(metavar="SITE", help="Leave out a site or an address, such as wikipedia.org."),
    ] = None,
    block_list: Annotated[
        list[Path] | None, typer.Option(help="A file with sites and addresses, one per line.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the links of Reddit posts that users have voted for, each once, to fetch as WebText.

    Reads dumps of submissions. Leaves out posts under the score, self posts, crossposts, deleted and
    removed ones, those over 18, and addresses on Reddit; removes tracking parameters and fragments.
    Prints how many for each reason. Lines that cannot be read are counted, and reading goes on.
    """
    from stillhouse.cleaning.reddit import LinkRules, print_links, write_links

    def say(sentence: str) -> None:
        typer.echo(sentence, err=True)

    rules = LinkRules(min_score, tuple(block or ()), tuple(block_list or ()))
    counts = write_links(files, output, rules, say)
    for kind, number in counts.damaged.items():
        say(f"could not be read: {number:,} x {kind}")
    for message in counts.messages:
        say(f"  {message}")
    print_json(counts.facts()) if as_json else print_links(counts, output)
