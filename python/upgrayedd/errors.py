"""What can go wrong. Every exception of the package is an `UpgrayeddError`; most are also what Python calls the same thing."""


class UpgrayeddError(Exception):
    """Anything that Upgrayedd itself reports."""


class InvalidValueError(UpgrayeddError, ValueError):
    """A value out of range, an unknown name, a decision that the model cannot take: the message says what would be right."""


class UpgrayeddWarning(UserWarning):
    """Something in a user's files that was passed over, or taken otherwise than the files say."""


class FileError(UpgrayeddError, OSError):
    """A file or folder that is missing, damaged, in the way or not what was expected."""
