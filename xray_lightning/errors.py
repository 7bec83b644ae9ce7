"""The errors that end a command with one line instead of a traceback, and their exit codes."""

EXIT_RUN_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT
EXIT_WARNED = 138  # 128 + SIGUSR1: a cluster that will soon end the job
EXIT_TERMINATED = 143  # 128 + SIGTERM
STOPPED = (EXIT_INTERRUPTED, EXIT_WARNED, EXIT_TERMINATED)


MOST_SHOWN = 3000  # most characters of a message, which may quote a file
LAST_SHOWN = 1000  # of these are kept from its end, which says what to do


class XrayError(Exception):
    """A failure that is told in one line: what is wrong, where, and what to do about it.

    A message that quotes a library may span several lines; they are joined.
    """

    exit_code = EXIT_RUN_FAILED

    def __init__(self, message: str = "") -> None:
        message = " ".join(message.splitlines())
        if len(message) > MOST_SHOWN:
            message = f"{message[: MOST_SHOWN - LAST_SHOWN]} ... {message[-LAST_SHOWN:]}"
        super().__init__(message)


class UserError(XrayError):
    """The caller can fix it: configuration, data or environment."""

    exit_code = EXIT_USER_ERROR


class RunFailedError(XrayError):
    """The run failed by itself: storage, numbers, a lost rank."""


class InterruptedRunError(BaseException):
    """The run was stopped from outside, by Ctrl-C, SIGTERM or SIGUSR1; `exit_code` says by which.

    Derives from BaseException, as KeyboardInterrupt does: it may be raised inside a library, whose
    `except Exception` must not catch it.
    """

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def check_whole(key: str, value: object, *, least: int, most: int | None = None) -> None:
    """Refuse a configuration value that is not an integer from `least` to `most`.

    Raises:
        UserError: naming the key.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        inside = value >= least and (most is None or value <= most)
    else:
        inside = False
    if not inside:
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise UserError(f"{key}={value} must be a whole number {bounds}")


def one_line(error: BaseException) -> str:
    """The error's message folded to a single line, so that a log keeps one line per failure."""
    return " ".join(str(error).split()) or type(error).__name__


def shortened(text: str, length: int, *, dots: str = "...") -> str:
    """The text cut to at most `length` characters; `dots` replace what is cut off."""
    return text if len(text) <= length else f"{text[: length - len(dots)]}{dots}"


def brief(value: object) -> str:
    """An invalid value as a message quotes it: its repr, printable and at most 60 characters."""
    return shortened(printable(repr(value)), 60)


def printable(text: str) -> str:
    """`text` on one line, with control, invisible and undecodable characters spelled out."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )
