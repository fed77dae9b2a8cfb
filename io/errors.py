"""The one exception that reaches a user as a single line."""


class UserError(Exception):
    """Something that the user can mend: a file, a flag, a permission.

    The message is one line that says what happened, where, why and what to do. The command line
    prints it without a traceback; anything else that is raised is a defect of ours and keeps its
    traceback.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
