"""Text of error messages and warnings."""


def one_line(error: Exception | str) -> str:
    r"""Return the first line of an error, for use in another message.

    Parameters
    ----------
    error : Exception or str

    Returns
    -------
    str
        At most 200 characters, without control characters. If there is no text, the name of the error's class.

    Examples
    --------
    >>> from pckd_nb.messages import one_line
    >>> one_line(ValueError("wrong shape\nsee the documentation"))
    'wrong shape'
    >>> one_line(ValueError())
    'ValueError'
    """
    line = (str(error).splitlines() or [""])[0]
    return "".join(character for character in line if character.isprintable())[:200].strip() or type(error).__name__


def error_message(error: Exception) -> str:
    """Return the message of an error as one line.

    Parameters
    ----------
    error : Exception

    Returns
    -------
    str
        The message, without the error number of an OSError. If the message is empty, the name of the error's class.
    """
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(text.split()) or type(error).__name__
