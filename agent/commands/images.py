"""The images of a folder that an option names, and what of it is left out."""

from pathlib import Path

import typer

from engine.errors import ConfigurationError
from engine.listing import Listing, find_images


def images_of(option: str, folder: Path, *, all_of_it: bool = False) -> Listing:
    """The images below `folder`; one line on standard error says what is left out.

    Args:
        option: Names the folder in errors.
        folder: Searched with all folders in it.
        all_of_it: Refuse a folder of which a part cannot be read.

    Returns:
        At least one image.

    Raises:
        ConfigurationError: There is no image, or the folder cannot be read.
    """
    try:
        listing = find_images(folder)
    except FileNotFoundError:
        raise ConfigurationError(option, str(folder), "there is no such folder") from None
    except NotADirectoryError:
        raise ConfigurationError(option, str(folder), "is not a folder") from None
    except OSError as error:
        raise ConfigurationError(
            option, str(folder), f"cannot be read ({error.strerror})"
        ) from None
    left_out = str(listing)
    if not listing.files:
        why = f" ({left_out})" if left_out else ""
        raise ConfigurationError(option, str(folder), f"there are no images below it{why}")
    if all_of_it and (unreadable := listing.unreadable) is not None:
        remedy = (
            f"{unreadable.count} of its folders cannot be read, the first is {unreadable.first}"
        )
        raise ConfigurationError(option, str(folder), f"{remedy}; make them readable or move them")
    if left_out:
        typer.echo(f"{folder}: {left_out}", err=True)
    return listing
