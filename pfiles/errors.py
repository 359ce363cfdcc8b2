"""The one exception for mistakes a user can mend."""


class InputError(ValueError):
    """Something given from outside is wrong: one sentence says what was expected, what came and what to do."""
